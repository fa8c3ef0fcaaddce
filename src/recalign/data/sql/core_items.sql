-- The other half-step: items with too few likes leave.
delete from likes
where item_id in (select item_id from likes group by item_id having count(*) < $core)
