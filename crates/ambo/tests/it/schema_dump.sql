-- The catalog of the schema, a fact a line, in an order that does not depend on the order of creation.
with relation as (
    select c.oid, c.relname as name, c.relkind, c.reloptions
    from pg_class c
    where c.relnamespace = 'ambo'::regnamespace and c.relkind in ('r', 'p', 'S')
      and c.relname !~ '_[0-9]{8}_[0-9]{4}$'
)
select line from (
    select '1 ' || t.typname as place,
           format('type %s: %s', t.typname, (select string_agg(e.enumlabel, ', ' order by e.enumsortorder)
                                             from pg_enum e where e.enumtypid = t.oid)) as line
    from pg_type t where t.typnamespace = 'ambo'::regnamespace and t.typtype = 'e'
    union all
    select '2 ' || r.name, format(E'\n%s %s%s',
               case r.relkind when 'S' then 'sequence' when 'p' then 'partitioned table' else 'table' end, r.name,
               coalesce(' with (' || array_to_string(r.reloptions, ', ') || ')', ''))
    from relation r
    union all
    select '2 ' || r.name || ' a' || to_char(a.attnum, '000'), format('    %s %s%s%s', a.attname,
               format_type(a.atttypid, a.atttypmod), case when a.attnotnull then ' not null' else '' end,
               coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''))
    from relation r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
    where r.relkind <> 'S'
    union all
    select '2 ' || r.name || ' b' || c.conname, format('    %s', pg_get_constraintdef(c.oid))
    from relation r join pg_constraint c on c.conrelid = r.oid where c.contype in ('c', 'u', 'f')
    union all
    select '2 ' || r.name || ' c' || i.relname,
           format('    %s', regexp_replace(pg_get_indexdef(i.oid), '^CREATE (UNIQUE )?INDEX (\S+) ON (ONLY )?\S+ USING ', '\1index \2 '))
    from relation r join pg_index x on x.indrelid = r.oid join pg_class i on i.oid = x.indexrelid
    union all
    select '3 ' || p.proname || pg_get_function_identity_arguments(p.oid), format(E'\nfunction %s(%s)\n    returns %s\n    %s%s%s',
               p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
               case p.provolatile when 'v' then 'volatile' when 's' then 'stable' else 'immutable' end,
               case when p.prosecdef then ', runs as its owner' else '' end,
               coalesce(', set ' || array_to_string(p.proconfig, ', '), ''))
    from pg_proc p where p.pronamespace = 'ambo'::regnamespace
) facts
order by place collate "C"
