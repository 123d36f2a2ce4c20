-- Makes pending entries ours and reads them: own leftovers, or other consumers' expired leases.
--
-- KEYS: 1 stream
-- ARGV: 1 group   2 consumer   3 least idle time in ms   4 raise of the delivery count (0 or 1)
--       5 "own" or "others": whose entries are meant   6.. entry ids
-- Returns {id, delivery count, payload} for each that it could claim.
--
-- The delivery count is raised here, before the work, so that an entry which kills its worker shows
-- it. XAUTOCLAIM is not used: what it replies for an entry whose payload is gone differs between
-- 6.2 (nil, and it stays pending) and 7.0 (a third list); here such an entry is acknowledged.
local claimed = {}
for i = 6, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  local owned = pending and pending[2] == ARGV[2]
  if pending and owned == (ARGV[5] == 'own') and pending[3] >= tonumber(ARGV[3]) then
    local deliveries = pending[4] + tonumber(ARGV[4])
    local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i],
      'RETRYCOUNT', deliveries)[1]
    if entry then
      claimed[#claimed + 1] = {entry[1], deliveries, entry[2][2]}
    else
      redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    end
  end
end
return claimed
