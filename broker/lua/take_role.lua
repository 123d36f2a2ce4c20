-- Takes what one holder has at a time (a role, a name), or renews it; refuses while another has it.
--
-- KEYS: 1 role
-- ARGV: 1 holder   2 lease in ms
-- Returns 1 when the role is ours for another lease, else 0.
-- A holder is known by what stands before the first space; the rest is said of it, for people.
-- The deletion comes first: a script that has written may write on, even on a full server.
local function who(words)
  return string.match(words, '^[^ ]*')
end
local holder = redis.call('GET', KEYS[1])
if holder and who(holder) ~= who(ARGV[1]) then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
