-- The other half-step: items with too few likes leave.
delete from trained
where item_id in (select item_id from trained group by item_id having count(*) < $core)
