-- Notes what a worker says of itself, and forgets workers that have said nothing for long.
--
-- KEYS: 1 workers hash
-- ARGV: 1 consumer   2 JSON   3 longest silence in seconds
-- A deletion comes first: a script that has written may write on, even on a full server.
local now = tonumber(redis.call('TIME')[1])
redis.call('HDEL', KEYS[1], ARGV[1])
local workers = redis.call('HGETALL', KEYS[1])
for i = 1, #workers, 2 do
  local said_at = tonumber(string.match(workers[i + 1], '^%d+'))
  if said_at == nil or now - said_at > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], workers[i])
  end
end
redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2])
