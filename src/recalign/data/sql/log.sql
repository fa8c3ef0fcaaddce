-- Every (user, item) of the log once: whether it is a like, and when it first was one.
create table log as
select
    user_id,
    item_id,
    bool_or(rating is null or $min_rating is null or rating >= $min_rating) as liked,
    min(timestamp) filter (rating is null or $min_rating is null or rating >= $min_rating) as timestamp
from (select user_id, item_id, rating::double as rating, timestamp::timestamp as timestamp from read_parquet($interactions))
group by user_id, item_id
