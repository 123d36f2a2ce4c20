-- Gives up entries that are still ours, undone: claimable by anyone at once, as if not delivered.
--
-- KEYS: 1 stream
-- ARGV: 1 group   2 consumer   3 the consumer that stands for nobody   4.. entry ids
-- Returns how many were given back. They move to another owner, so that neither a renewal that is
-- under way nor our own recovery takes them again.
local given = 0
for i = 4, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1]
  if pending then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i],
      'IDLE', 1000000000, 'RETRYCOUNT', math.max(pending[4] - 1, 0), 'JUSTID')
    given = given + 1
  end
end
return given
