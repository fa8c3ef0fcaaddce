-- The user's order: by time, equal times (76 % of MovieLens rows share one) by md5 of (user, item); without a clock md5 alone.
-- position: how many likes of the user stand before this one, hidden items aside; length: how many there are.
create table sequences as
select
    user_id,
    item_id,
    timestamp,
    hidden,
    count(*) filter (hidden is null) over (
        partition by user_id
        order by timestamp, md5_number_lower(concat(user_id, '-', item_id)), item_id
        rows between unbounded preceding and 1 preceding
    ) as position,
    count(*) filter (hidden is null) over (partition by user_id) as length
from likes
