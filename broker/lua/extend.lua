-- Renews the leases of entries that are still ours: idle time back to 0, delivery count untouched.
--
-- KEYS: 1 stream
-- ARGV: 1 group   2 consumer   3.. entry ids
-- Returns the ids that are still ours. A plain XCLAIM would steal an entry back from whoever claimed
-- it after our lease expired; nothing here revives an entry that was acknowledged.
local ours = {}
for i = 3, #ARGV do
  if redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    ours[#ours + 1] = ARGV[i]
  end
end
return ours
