-- Forgets a job: its counters go, and what is left of it in the streams is marked as not worth doing.
--
-- KEYS: 1 dropped mark of the job   2 progress hash of the job
-- ARGV: 1 lifetime of the mark in seconds
-- The deletion comes first: a script that has written may write on, even on a full server.
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])
