-- Every item with its train events and its pool: the items that stand beside it in a list of candidates.
create table pools as
with counts as (select item_id, count(*) as popularity from trained group by item_id)
select
    item_id,
    coalesce(popularity, 0) as popularity,
    hidden,
    case
        when hidden is not null then concat('hidden-', hidden)
        when coalesce(popularity, 0) < $cold_events then concat('count-', coalesce(popularity, 0))
        else 'warm'
    end as pool
from read_parquet($items)
left join counts using (item_id)
left join hidden using (item_id)
order by item_id
