-- A load that makes every record type of GiST, SP-GiST, BRIN and generic (bloom), for the oracle:
--   npm run oracle:redo -- --sql src/redo/testdata/gist-spgist-brin-generic.sql
create extension if not exists bloom;
create extension if not exists btree_gist;
create extension if not exists pg_trgm;
select setseed(0.42);

-- every operator family of interest on one table
create table idx (id int primary key, p point, r int4range, b box, t text, ip inet, i int, j int, n text);
create index on idx using gist (p);
create index on idx using gist (r);
create index on idx using gist (b);
create index on idx using gist (t gist_trgm_ops);
create index on idx using gist (i, j);
create index on idx using gist (p) include (i, j);
create index on idx using spgist (t);
create index on idx using spgist (p);
create index on idx using spgist (p kd_point_ops);
create index on idx using spgist (r);
create index on idx using spgist (ip);
create index on idx using spgist (b);
create index on idx using spgist (n);
create index on idx using spgist (p) include (i, n);
create index idx_b1 on idx using brin (i) with (pages_per_range = 1);
create index idx_b2 on idx using brin (i, j, t) with (pages_per_range = 2);
create index idx_b3 on idx using brin (i int4_bloom_ops(n_distinct_per_range = 200)) with (pages_per_range = 4);
create index idx_b4 on idx using brin (j int4_minmax_multi_ops) with (pages_per_range = 2);
create index on idx using bloom (i, j, t);
create function idx_rows(lo int, hi int) returns setof idx language sql volatile as $$
  select g, point(random() * 1000, random() * 1000),
    int4range((random() * 10000)::int, 10001 + (random() * 1000)::int),
    box(point(random() * 1000, random() * 1000), point(random() * 1000, random() * 1000)),
    repeat(chr(97 + (random() * 2)::int), (random() * 40)::int) || md5((g % 997)::text) || chr(33 + (random() * 90)::int),
    (((random() * 255)::int)::text || '.' || ((random() * 255)::int)::text || '.7.' || ((random() * 255)::int)::text)::inet,
    g, (random() * 100000)::int,
    case when random() < 0.3 then null when random() < 0.5 then 'https://example.org/' || repeat('path/', (random() * 20)::int) || g
      else chr(40000 + (random() * 2000)::int) || g end
  from generate_series(lo, hi) g $$;
insert into idx select * from idx_rows(1, 4000);
select brin_summarize_new_values(c) from (values ('idx_b1'::regclass), ('idx_b2'), ('idx_b3'), ('idx_b4')) v (c);
update idx set j = j + 1, i = i + 5 where id % 7 = 0;
update idx set t = t || repeat('z', 40) || id where id % 11 = 0;
delete from idx where id % 3 = 0;
vacuum idx;
insert into idx select * from idx_rows(10001, 11500);
select brin_desummarize_range('idx_b1', x) from generate_series(0, 60, 3) x;
select brin_summarize_new_values('idx_b1');
delete from idx where p <@ box(point(0, 0), point(500, 1000));
vacuum idx;

-- GiST: whole pages empty, then reused
create table gist_pages (i int, p point);
create index on gist_pages using gist (i);
create index on gist_pages using gist (p);
insert into gist_pages select g, point(g, g) from generate_series(1, 8000) g;
delete from gist_pages where i between 1000 and 7000;
vacuum gist_pages;
vacuum gist_pages;
insert into gist_pages select g, point(g, g) from generate_series(1, 4000) g;

-- GiST: index scans mark dead items, insertions then delete them (DELETE)
create table gist_dead (i int, p point);
create index on gist_dead using gist (i);
create index on gist_dead using gist (p);
insert into gist_dead select g % 500, point(g % 500, g % 100) from generate_series(1, 5000) g;
delete from gist_dead where i % 10 <> 0;
set enable_seqscan = off;
set enable_bitmapscan = off;
select count(*) from gist_dead where i between 0 and 500;
select count(*) from gist_dead where p <@ box(point(0, 0), point(1000, 1000));
insert into gist_dead select g % 500, point(g % 500, g % 100) from generate_series(1, 5000) g;
reset all;

-- SP-GiST: a root that is a leaf (VACUUM_ROOT), also of the nulls
create table spg_root (i int, t text);
create index on spg_root using spgist (t);
insert into spg_root select g, 'abc' || g from generate_series(1, 40) g;
insert into spg_root select g, null from generate_series(41, 80) g;
delete from spg_root where i % 3 = 0;
vacuum spg_root;

-- SP-GiST: common prefixes that get split (SPLIT_TUPLE), inner tuples that grow and move (ADD_NODE)
create table spg_text (i int, t text);
create index on spg_text using spgist (t);
insert into spg_text select g, repeat('a', 1 + g % 300) || chr(98 + g % 20) || g from generate_series(1, 4000) g;
insert into spg_text select g, repeat('a', (random() * 200)::int) || chr(200 + (random() * 5000)::int) from generate_series(1, 6000) g;
insert into spg_text select g, chr(200 + (random() * 5000)::int) || chr(200 + (random() * 5000)::int) || g from generate_series(1, 6000) g;
insert into spg_text select g, null from generate_series(1, 500) g;
insert into spg_text select g, 'common/prefix/here/' || md5((g % 50)::text) || '/' || g from generate_series(1, 3000) g;
insert into spg_text select g, 'common/pre' || md5((g % 50)::text) || '/' || g from generate_series(1, 1500) g;
insert into spg_text select g, 'com' || md5((g % 50)::text) || '/' || g from generate_series(1, 1500) g;
delete from spg_text where i % 5 <> 0;
vacuum spg_text;
insert into spg_text select g, repeat('a', 1 + g % 300) || chr(98 + g % 20) || g from generate_series(1, 2000) g;
create index on spg_text using spgist (t);
delete from spg_text;
vacuum spg_text;

-- BRIN: more ranges than one revmap page holds (REVMAP_EXTEND), tuples that outgrow their page (UPDATE)
create table brin_wide (i int, t text) with (fillfactor = 10);
create index brin_wide_i on brin_wide using brin (i) with (pages_per_range = 1);
create index brin_wide_t on brin_wide using brin (t) with (pages_per_range = 1);
insert into brin_wide select g, repeat('x', 500 + g % 500) from generate_series(1, 3000) g;
select brin_summarize_new_values('brin_wide_i'), brin_summarize_new_values('brin_wide_t');
select brin_desummarize_range('brin_wide_t', x) from generate_series(0, 1500, 9) x;
update brin_wide set t = md5(i::text) || repeat('w', 1 + i % 1900) where i % 13 = 0;
select brin_summarize_new_values('brin_wide_t');
update brin_wide set t = repeat('z', 1900), i = -i where i % 17 = 0;
vacuum brin_wide;

-- generic records: bloom, with vacuum
create table bloom_rows (a int, b int, c text);
create index on bloom_rows using bloom (a, b, c);
insert into bloom_rows select g, g % 100, md5(g::text) from generate_series(1, 4000) g;
delete from bloom_rows where a % 3 = 0;
vacuum bloom_rows;
insert into bloom_rows select g, g % 100, md5(g::text) from generate_series(1, 1000) g;
