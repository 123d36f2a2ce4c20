-- Takes an entry out of one stream and puts what it became into others, or does nothing at all.
--
-- KEYS: 1 source stream   2 activity counter   3 dropped mark of the job   4 progress hash of the job
--       5.. output streams
-- ARGV: 1 group   2 entry id   3 number of counters n   then n pairs (counter, increment)
--       then pairs (index into KEYS, payload)
-- Returns 1, or 0 when the entry was handed off before: by another consumer, or by this very call
-- whose reply was lost.
--
-- The acknowledgement comes first. It is the idempotency token, and it makes the script work on a
-- full server: once a script has written, Redis lets it write on. The entry's memory is freed before
-- the outputs' is taken.
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('INCR', KEYS[2])
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 1 -- nobody waits for this job any more
end
local first_output = 4 + 2 * tonumber(ARGV[3])
for i = 4, first_output - 1, 2 do
  redis.call('HINCRBY', KEYS[4], ARGV[i], ARGV[i + 1])
end
for i = first_output, #ARGV, 2 do
  redis.call('XADD', KEYS[tonumber(ARGV[i])], '*', 'm', ARGV[i + 1])
end
return 1
