-- One half-step of the k-core: users with too few likes leave.
delete from trained
where user_id in (select user_id from trained group by user_id having count(*) < $core)
