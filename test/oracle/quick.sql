-- A little of everything, for `npm run oracle:redo -- --quick`: all index types, updates, deletes, vacuum.
create extension bloom;
create table mix (id int primary key, n int, t text, a int[], p point, r int4range, c bpchar);
create index mix_n on mix (n);
create index mix_dup on mix ((n % 7));
create index mix_hash on mix using hash (n);
create index mix_gin on mix using gin (a);
create index mix_gist_p on mix using gist (p);
create index mix_gist_r on mix using gist (r);
create index mix_spgist_t on mix using spgist (t);
create index mix_spgist_p on mix using spgist (p);
create index mix_brin on mix using brin (id, n) with (pages_per_range = 4, autosummarize = on);
create index mix_bloom on mix using bloom (n, id);
create function fill(first int, last int) returns void language sql as $$
  insert into mix
  select i, (i * 7919) % 10007, 'row ' || i % 50 || ' of ' || i, array[i % 100, i % 13, i], point(i % 317, (i * 31) % 711),
         int4range(i % 1000, i % 1000 + 50), repeat('x', i % 90)
  from generate_series(first, last) i
$$;
select fill(1, 2500);
-- one row per transaction, so that every insertion is its own step
do $$ begin for i in 4001..4500 loop perform fill(i, i); if i % 50 = 0 then commit; end if; end loop; end $$;
update mix set n = n + 1 where id % 3 = 0;
update mix set t = t || ' again', p = point(n, id) where id % 5 = 0;
delete from mix where id % 4 = 1;
vacuum mix;
select fill(10001, 11500);
update mix set c = 'hot' where id > 10000;
begin;
savepoint s;
update mix set n = 0 where id between 100 and 200;
rollback to s;
select count(*) from (select 1 from mix where id < 300 for key share) x;
select count(*) from (select 1 from mix where id < 200 for update) x;
commit;
select brin_summarize_new_values('mix_brin');
select brin_desummarize_range('mix_brin', 0);
select gin_clean_pending_list('mix_gin');
delete from mix where id between 2000 and 12000;
vacuum (freeze) mix;
select fill(20001, 21500);
create sequence numbers;
select count(nextval('numbers')) from generate_series(1, 500);
create table toasted (k int primary key, v text);
alter table toasted alter v set storage external;
insert into toasted select i, repeat(md5(i::text), 200) from generate_series(1, 100) i;
insert into toasted select i, repeat(md5(i::text), 100) from generate_series(50, 150) i
  on conflict (k) do update set v = excluded.v;
create table parted (id int, part int) partition by list (part);
create table parted_1 partition of parted for values in (1);
create table parted_2 partition of parted for values in (2);
insert into parted select i, 1 from generate_series(1, 300) i;
update parted set part = 2 where id % 2 = 0;
create table copied (id int, h text);
copy copied (id) from program 'seq 1 20000';
alter table copied alter h set default 'h';
copy copied (id) from program 'seq 20001 22000';
update copied set h = md5(id::text) where id % 5 = 0;
create index on copied (h);
create index on copied using hash (id);
create index on copied using gist (point(id, id));
vacuum copied;
delete from copied where id < 5000;
update copied set h = 'x' where id > 18000;
vacuum copied;
cluster mix using mix_pkey;
vacuum full toasted;
create unlogged table not_logged (id int primary key);
insert into not_logged select generate_series(1, 1000);
alter table not_logged set logged;
truncate copied;
insert into copied select i, 'new' from generate_series(1, 2000) i;
select pg_switch_wal();
update mix set n = 1 where id % 2 = 0;
checkpoint;
update mix set n = 2 where id % 2 = 1;
