-- Every item with its train events (all of them, whatever the k-core keeps: popularity), and its pool: the items that
-- stand beside it in a list of candidates.
create table pools as
with
before as (select item_id, count(*) as train_events from placed where split = 'train' and hidden is null group by item_id),
core as (select item_id, count(*) as popularity from trained group by item_id)
select
    item_id,
    coalesce(train_events, 0) as train_events,
    coalesce(popularity, 0) as popularity,
    hidden,
    case
        when hidden is not null then concat('hidden-', hidden)
        when coalesce(train_events, 0) < $cold_events then concat('count-', coalesce(train_events, 0))
        else 'warm'
    end as pool
from read_parquet($items)
left join before using (item_id)
left join core using (item_id)
left join hidden using (item_id)
order by item_id
