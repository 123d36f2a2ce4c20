-- Acknowledges and deletes entries in one step, so that a stream's length is the outstanding work.
--
-- KEYS: 1 stream   2 activity counter
-- ARGV: 1 group   2.. entry ids
-- Returns how many were still pending.
local acknowledged = 0
for i = 2, #ARGV do
  acknowledged = acknowledged + redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
if acknowledged > 0 then
  redis.call('INCR', KEYS[2])
end
return acknowledged
