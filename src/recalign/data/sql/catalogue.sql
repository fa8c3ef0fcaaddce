-- Kept items and how often train likes them.
select item_id, count(*) filter (split = 'train') as popularity
from events
group by item_id
order by item_id
