-- What training may read, before the k-core: neither later likes nor those of test users, so that it knows no future.
create table trained as
select user_id, item_id from placed where split = 'train' and hidden is null
