-- Takes a role that must be filled once, or renews it; refuses while somebody else has it.
--
-- KEYS: 1 role
-- ARGV: 1 consumer   2 lease in ms
-- Returns 1 when the role is ours for another lease, else 0.
-- The deletion comes first: a script that has written may write on, even on a full server.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
