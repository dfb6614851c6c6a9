-- Cron patterns: whether one can be read. The program that reckons the times reads them again; a test holds the two against
-- each other.

-- What is wrong with a pattern; null: nothing.
create or replace function ambo.cron_fault(p_cron text) returns text
language plpgsql immutable
as $$
declare
    -- Letters are those of ASCII, whatever the collation of the database.
    v_cron text := upper(btrim(p_cron, E' \t\n\x0b\f\r') collate "C");
    v_names constant text[] := '{second,minute,hour,day of the month,month,day of the week}';
    v_fields text[];
    v_name text[];
begin
    if p_cron is null or v_cron in ('@YEARLY', '@ANNUALLY', '@MONTHLY', '@WEEKLY', '@DAILY', '@HOURLY') then
        return null;
    end if;
    foreach v_name slice 1 in array array[
        ['-SUN', '-7'], ['SUN', '0'], ['MON', '1'], ['TUE', '2'], ['WED', '3'], ['THU', '4'], ['FRI', '5'], ['SAT', '6'],
        ['JAN', '1'], ['FEB', '2'], ['MAR', '3'], ['APR', '4'], ['MAY', '5'], ['JUN', '6'], ['JUL', '7'], ['AUG', '8'],
        ['SEP', '9'], ['OCT', '10'], ['NOV', '11'], ['DEC', '12']]
    loop
        v_cron := replace(v_cron, v_name[1], v_name[2]);
    end loop;
    v_fields := regexp_split_to_array(v_cron, E'[ \t\n\x0b\f\r]+');
    if cardinality(v_fields) = 5 then
        v_fields := array_prepend('0', v_fields);
    elsif cardinality(v_fields) <> 6 then
        return format('a pattern has 5 or 6 fields, not %s', cardinality(v_fields));
    end if;
    v_fields[4] := replace(v_fields[4], '?', '*');
    -- With a plus the days of the month and of the week must both be met.
    v_fields[6] := regexp_replace(replace(v_fields[6], '?', '*'), '^\+', '');
    for i in 1 .. 6 loop
        if not ambo.is_cron_field(i, v_fields[i]) then
            return format('%s is no %s', quote_literal(left(v_fields[i], 50)), v_names[i]);
        end if;
    end loop;
    return null;
end $$;

-- Whether the field p_place of six is a list of numbers, ranges and steps, and for days of what they may have besides:
-- L (the last), 15W (the weekday next to it), 5#3 (the third Friday), 5L (the last Friday).
create or replace function ambo.is_cron_field(p_place integer, p_field text) returns boolean
language plpgsql immutable
as $$
declare
    v_low constant integer := ('{0,0,0,1,1,0}'::integer[])[p_place];
    v_high constant integer := ('{59,59,23,31,12,7}'::integer[])[p_place];
    v_item text;
    v_span text;
    v_numbers numeric[];
begin
    if p_field !~ (case p_place when 4 then '^[-*/,0-9LW]*$' when 6 then '^[-*/,0-9L#]*$' else '^[-*/,0-9]*$' end) then
        return false;
    elsif p_field = '*' then
        return true;
    end if;
    foreach v_item in array string_to_array(p_field, ',') loop
        -- Nothing between two commas is nothing.
        continue when v_item in ('', 'L');
        if v_item ~ 'W' and v_item !~ '[-/]' then
            v_item := split_part(v_item, 'W', 1);
            continue when v_item = 'L';
        end if;
        if p_place = 6 and v_item ~ '^[^-/#]*L$' then
            v_item := replace(v_item, 'L', '#L');
        end if;
        v_span := split_part(v_item, '#', 1);
        if v_item ~ '#' and v_item !~ 'L$' and v_item !~ '^[^#]*#0*[1-5]$'
           or v_span !~ (case when v_item ~ '/' then '/' when v_item ~ '-' then '-' else '' end)
        then
            return false;
        end if;
        v_span := regexp_replace(v_span, '^\*/', format('%s-%s/', v_low, v_high));
        v_numbers := regexp_match(v_span, '^([0-9]+)(?:-([0-9]+)(?:/([0-9]+))?)?$');
        if v_numbers is null or v_numbers[1] < v_low or coalesce(v_numbers[2], v_numbers[1]) > v_high
           or v_numbers[2] < v_numbers[1] or v_numbers[3] not between 1 and 65535 - v_numbers[1]
        then
            return false;
        end if;
    end loop;
    return true;
end $$;
