-- A table with all index types, for the concurrent load in mix.pgbench.
create extension if not exists bloom;
create table busy (id int primary key, n int, t text, a int[], p point, r int4range, c text)
  with (autovacuum_vacuum_threshold = 300, autovacuum_vacuum_scale_factor = 0, autovacuum_analyze_threshold = 1000);
insert into busy select i, i % 500, 'row ' || i, array[i % 50, i % 7], point(i % 50, i), int4range(i, i + 10), ''
  from generate_series(1, 3000) i;
create index on busy (n);
create index on busy using hash (n);
create index on busy using gin (a) with (gin_pending_list_limit = 128);
create index on busy using gist (p);
create index on busy using gist (r);
create index on busy using spgist (t);
create index on busy using spgist (p);
create index on busy using brin (n) with (pages_per_range = 4, autosummarize = on);
create index on busy using bloom (n, id);
create table parents (id int primary key, v int);
insert into parents select i, 0 from generate_series(1, 3) i;
create table long_values (k int primary key, v text);
alter table long_values alter v set storage external;
