-- Records that ordinary loads seldom write (wal-redo.md 9.4). Each part names what it is for.
set client_min_messages = warning;

-- Btree UNLINK_PAGE_META, INSERT_META: a tall tree of wide keys loses nearly all of its pages, so that the fast root sinks;
-- then it grows again from there. Btree META_CLEANUP comes with the vacuums.
create table tall (k text collate "C");
alter table tall alter k set storage plain;
create index tall_k on tall (k) with (deduplicate_items = off);
insert into tall select lpad(i::text, 700, 'k') from generate_series(1, 6000) i;
delete from tall where k < lpad('5990', 700, 'k');
vacuum tall;
insert into tall select lpad(i::text, 700, 'k') from generate_series(6001, 6600) i;
insert into tall select lpad(i::text, 700, 'k') from generate_series(1, 2000) i;
delete from tall where k between lpad('300', 700, 'k') and lpad('1900', 700, 'k');
vacuum tall;
insert into tall select lpad(i::text, 700, 'k') from generate_series(6601, 7600) i;

-- Btree DEDUP, DELETE and VACUUM of posting lists, INSERT_POST
create table dups (id int, v int) with (autovacuum_enabled = off);
create index dups_v on dups (v);
insert into dups select i, i % 20 from generate_series(1, 40000) i;
delete from dups where id % 3 = 0;
vacuum dups;
insert into dups select i, i % 20 from generate_series(1, 20000) i;
delete from dups where v = 7;
vacuum dups;
create table versions (id int primary key, a int, b int);
create index versions_a on versions (a);
create index versions_b on versions (b);
insert into versions select i, i % 10, i from generate_series(1, 2000) i;
do $$ begin for r in 1..60 loop update versions set b = b + 1 where id % 60 = r or id < 50; commit; end loop; end $$;
set enable_seqscan = off; set enable_bitmapscan = off;
delete from versions where id % 2 = 0;
do $$ begin for r in 1..20 loop perform count(*) from versions where a = r % 10 and b > 0; commit; end loop; end $$;
insert into versions select i, i % 10, i from generate_series(10001, 14000) i;
reset enable_seqscan; reset enable_bitmapscan;

-- Gin: posting trees made by insertion, thinned out, emptied; an entry tree tall enough to split inner pages
create table words (id int, a int[], t text[]) with (autovacuum_enabled = off);
create index words_a on words using gin (a) with (fastupdate = off);
create index words_t on words using gin (t) with (fastupdate = off);
insert into words select i, array[1, i % 3 + 2, i / 10000 + 10], array['w' || i % 100] from generate_series(1, 60000) i;
delete from words where id % 3 = 0;
vacuum words;
delete from words where id between 10000 and 52000;
vacuum words;
insert into words select i, array[1, 3], array[(select string_agg(md5((i * 7919 + j)::text), '') from generate_series(1, 40) j)]
  from generate_series(1, 1500) i;
delete from words where id % 2 = 0;
vacuum words;
create index words_f on words using gin (a) with (fastupdate = on, gin_pending_list_limit = 64);
insert into words select i, array[i, 5, 6], '{}' from generate_series(1, 20000) i;
select gin_clean_pending_list('words_f');

-- Gist DELETE, Hash VACUUM_ONE_PAGE: index scans mark dead items, insertions clear them away
create table killed (id int, p point, h int) with (autovacuum_enabled = off);
create index killed_p on killed using gist (p);
create index killed_h on killed using hash (h);
insert into killed select i, point(i % 100, i / 100), i % 200 from generate_series(1, 20000) i;
delete from killed where id % 10 <> 0;
set enable_seqscan = off; set enable_bitmapscan = off;
select count(*) from killed where p <@ box '((0,0),(1000,1000))';
do $$ begin for v in 0..199 loop perform count(*) from killed where h = v; end loop; end $$;
insert into killed select i, point(i % 100, i / 100), i % 200 from generate_series(1, 20000) i;
delete from killed;
select count(*) from killed where p <@ box '((0,0),(1000,1000))';
do $$ begin for v in 0..199 loop perform count(*) from killed where h = v; end loop; end $$;
insert into killed select i, point(i % 100, i / 100), i % 200 from generate_series(1, 5000) i;
reset enable_seqscan; reset enable_bitmapscan;
vacuum killed;

-- Hash MOVE_PAGE_CONTENTS, SQUEEZE_PAGE: long chains of overflow pages, thinned out
create table chained (h int) with (autovacuum_enabled = off);
create index chained_h on chained using hash (h);
insert into chained select i % 5 from generate_series(1, 12000) i;
insert into chained select i from generate_series(1, 4000) i;
delete from chained where ctid::text like '%7)' or ctid::text like '%3)';
vacuum chained;
delete from chained where h = 2 and ctid::text like '%1)';
vacuum chained;
delete from chained where ctid < '(40,1)';
vacuum chained;
insert into chained select i % 50 from generate_series(1, 30000) i;
delete from chained where h % 2 = 0;
vacuum chained;

-- Gist PAGE_DELETE, and splits with vacuum
create table boxes (id int, b box) with (autovacuum_enabled = off);
create index boxes_b on boxes using gist (b);
insert into boxes select i, box(point(i, i), point(i + 3, i + 3)) from generate_series(1, 20000) i;
delete from boxes where id between 3000 and 17000;
vacuum boxes;
vacuum boxes;
insert into boxes select i, box(point(i, 1), point(i + 3, 4)) from generate_series(1, 10000) i;

-- SPGist: VACUUM_ROOT on a small index, ADD_NODE and SPLIT_TUPLE by texts with long common prefixes
create table small (t text, p point) with (autovacuum_enabled = off);
create index small_t on small using spgist (t);
create index small_p on small using spgist (p);
insert into small select 'text ' || i, point(i, i) from generate_series(1, 40) i;
delete from small where t like '%3%';
vacuum small;
create table prefixes (t text, p point) with (autovacuum_enabled = off);
create index prefixes_t on prefixes using spgist (t);
create index prefixes_q on prefixes using spgist (p quad_point_ops);
create index prefixes_k on prefixes using spgist (p kd_point_ops);
insert into prefixes select repeat('abc', i % 40) || chr(97 + i % 26) || md5(i::text), point(i % 100, i % 37)
  from generate_series(1, 8000) i;
insert into prefixes select substr(repeat('abc', 40), 1, i % 110) || chr(48 + i % 70) || i, point(0, 0)
  from generate_series(1, 8000) i;
delete from prefixes where t like '%7%';
vacuum prefixes;
insert into prefixes select repeat('b', i % 200) || i, point(i, -i) from generate_series(1, 4000) i;
vacuum prefixes;

-- BRIN UPDATE: summaries that outgrow their page
create table ranges (id int, t text) with (fillfactor = 50, autovacuum_enabled = off);
alter table ranges alter t set storage plain;
create index ranges_t on ranges using brin (t) with (pages_per_range = 1);
insert into ranges select i, 'v' || i from generate_series(1, 20000) i;
select brin_summarize_new_values('ranges_t');
update ranges set t = repeat(chr(97 + id % 26), 500 + id % 700) where id % 97 = 0;
update ranges set t = repeat(chr(97 + id % 26), 900 + id % 500) where id % 89 = 0;
select brin_desummarize_range('ranges_t', 3);
select brin_summarize_range('ranges_t', 3);
insert into ranges select i, repeat('z', 1500) from generate_series(1, 3000) i;
select brin_summarize_new_values('ranges_t');
-- enough ranges for the revmap to push regular pages out of its way
create index ranges_id on ranges using brin (id) with (pages_per_range = 1);
insert into ranges select i, 'v' from generate_series(1, 300000) i;
select brin_summarize_new_values('ranges_id');
select brin_summarize_new_values('ranges_t');

-- Freezing with multixacts, in-place updates, partition moves, TOAST, sequences
create sequence counted cache 7;
select count(nextval('counted')) from generate_series(1, 3000);
alter sequence counted restart;
vacuum (freeze, analyze);
analyze;

-- files: databases both ways, tablespaces, rewrites
create database copied_wal strategy wal_log;
create database copied_file strategy file_copy;
\c copied_file
create table here (i int primary key);
insert into here select generate_series(1, 1000);
delete from here where i < 500;
vacuum here;
\c copied_wal
create table here (i int primary key);
insert into here select generate_series(1, 1000);
vacuum here;
\c postgres
drop database copied_wal;
create table rewritten (id int primary key, t text);
insert into rewritten select i, md5(i::text) from generate_series(1, 3000) i;
create materialized view viewed as select id % 10 as m, count(*) from rewritten group by 1;
refresh materialized view viewed;
create unique index viewed_m on viewed (m);
refresh materialized view concurrently viewed;
vacuum full rewritten;
cluster rewritten using rewritten_pkey;
alter table rewritten set unlogged;
alter table rewritten set logged;
reindex table concurrently rewritten;
truncate rewritten;
begin;
insert into rewritten select i, md5(i::text) from generate_series(1, 3000) i;
savepoint a;
truncate rewritten;
rollback to a;
prepare transaction 'kept';
commit prepared 'kept';
begin;
update rewritten set t = 'x';
prepare transaction 'dropped';
rollback prepared 'dropped';
select pg_logical_emit_message(true, 'oracle', 'hello');
select lo_from_bytea(0, decode(repeat('00ff', 30000), 'hex'));
-- truncation at the end of a table, and growth again: map bits of the lost blocks must not come back
create table shrinking (i int) with (autovacuum_enabled = off);
insert into shrinking select generate_series(1, 100000);
vacuum shrinking;
delete from shrinking where i > 30000;
vacuum shrinking;
insert into shrinking select generate_series(1, 50000);
vacuum shrinking;
