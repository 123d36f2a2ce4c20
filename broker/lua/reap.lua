-- Removes consumers that hold nothing and have not been seen for long. One script, because removing
-- a consumer that has just been given an entry would lose the entry.
--
-- KEYS: 1 stream
-- ARGV: 1 group   2 least idle time in ms
-- Returns the number of consumers removed.
local removed = 0
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #fields, 2 do
    consumer[fields[i]] = fields[i + 1]
  end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
