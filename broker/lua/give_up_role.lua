-- Gives a role up that is still ours, so that somebody else may take it at once.
--
-- KEYS: 1 role
-- ARGV: 1 consumer
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
