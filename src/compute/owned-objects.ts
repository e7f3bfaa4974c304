/**
 * Who owns what in a database, as the statements that make it so: a query that gives one text `alter … owner to …` a row. Objects of
 * initdb and members of extensions are left out, and what must belong to a superuser (foreign-data wrappers, event triggers,
 * subscriptions, publications of all tables). Indexes and sequences of columns follow their tables.
 */

/** `condition` on `owner` (an oid) picks the objects; `newOwner` is an SQL expression of text, which may name `owner`. */
export function alterOwners(condition: string, newOwner: string): string {
  return `
    with owned (class, oid, statement, owner) as (
      select 'pg_class'::regclass, c.oid, 'table', relowner
        from pg_class c where relkind in ('r', 'p', 'v', 'm', 'f', 'S') and relpersistence <> 't'
          and not (relkind = 'S' and exists (select from pg_depend d where d.classid = 'pg_class'::regclass
            and d.objid = c.oid and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')))
      union all select 'pg_proc'::regclass, oid, 'routine', proowner from pg_proc
      union all select 'pg_type'::regclass, t.oid, 'type', typowner
        from pg_type t left join pg_class c on c.oid = typrelid
        where (typrelid = 0 or c.relkind = 'c') and typtype <> 'm'
          and not exists (select from pg_type element where element.typarray = t.oid)
      union all select 'pg_namespace'::regclass, oid, 'schema', nspowner
        from pg_namespace where nspname !~ '^pg_(toast_)?temp_'
      union all select 'pg_operator'::regclass, oid, 'operator', oprowner from pg_operator
      union all select 'pg_opclass'::regclass, oid, 'operator class', opcowner from pg_opclass
      union all select 'pg_opfamily'::regclass, oid, 'operator family', opfowner from pg_opfamily
      union all select 'pg_collation'::regclass, oid, 'collation', collowner from pg_collation
      union all select 'pg_conversion'::regclass, oid, 'conversion', conowner from pg_conversion
      union all select 'pg_ts_dict'::regclass, oid, 'text search dictionary', dictowner from pg_ts_dict
      union all select 'pg_ts_config'::regclass, oid, 'text search configuration', cfgowner from pg_ts_config
      union all select 'pg_statistic_ext'::regclass, oid, 'statistics', stxowner from pg_statistic_ext
      union all select 'pg_foreign_server'::regclass, oid, 'server', srvowner from pg_foreign_server
      union all select 'pg_publication'::regclass, oid, 'publication', pubowner from pg_publication where not puballtables
      union all select 'pg_largeobject'::regclass, oid, 'large object', lomowner from pg_largeobject_metadata
    )
    select format('alter %s %s owner to %I', statement, (pg_identify_object(class, oid, 0)).identity, ${newOwner})
    from owned o
    where ${condition}
      and (oid >= 16384 or class = 'pg_largeobject'::regclass
        or (class = 'pg_namespace'::regclass and oid = 'public'::regnamespace))
      and not exists (select from pg_depend d where d.classid = o.class and d.objid = o.oid and d.deptype = 'e')`;
}
