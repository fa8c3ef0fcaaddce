-- One half-step of the k-core: users with too few likes leave.
delete from likes
where user_id in (select user_id from likes group by user_id having count(*) < $core)
