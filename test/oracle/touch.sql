-- Changes to every index of quick.sql's table, right after a checkpoint: each page comes with an image first.
select fill(last + 1, last + 1500) from (select max(id) as last from mix) x;
update mix set n = n + 1, t = t || 'y', p = point(id, n) where id % 3 = 0;
update mix set c = 'z' where id % 11 = 0;
delete from mix where id % 13 = 0;
vacuum mix;
select gin_clean_pending_list('mix_gin');
insert into toasted select i, repeat(md5(i::text), 50) from generate_series(1, 50) i on conflict (k) do update set v = excluded.v;
select count(nextval('numbers')) from generate_series(1, 100);
