-- Every (user, item) of the log once: when they first met, whether the item is liked, and when it first was.
create table log as
select
    user_id,
    item_id,
    bool_or(liked) as liked,
    min(timestamp) as met,
    min(timestamp) filter (liked) as timestamp
from (
    select
        user_id,
        item_id,
        timestamp::timestamp as timestamp,
        rating is null or $min_rating is null or rating::double >= $min_rating as liked
    from read_parquet($interactions)
)
group by user_id, item_id
