-- The user's order: by time, equal times (76 % of MovieLens rows share one) by md5 of (user, item); without a clock md5 alone.
create table sequences as
select
    user_id,
    item_id,
    timestamp,
    row_number() over (
        partition by user_id
        order by timestamp, md5_number_lower(concat(user_id, '-', item_id)), item_id
    ) - 1 as position,
    count(*) over (partition by user_id) as length
from likes
