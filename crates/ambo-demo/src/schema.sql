-- The shop's own tables, in its own schema `public`: Ambo lives beside them.
create table item (
    id integer primary key,
    stocked integer not null,
    remaining integer not null check (remaining >= 0)
);
insert into item select n, 1000000, 1000000 from generate_series(1, 20) n;

create table orders (
    id bigint primary key,
    item integer not null references item,
    quantity integer not null,
    cents bigint not null,
    imported boolean not null,
    approved boolean not null default false
);
create table shipment (
    order_id bigint not null,
    charge bigint not null
);
-- Orders whose stock was given back: the key makes the compensation, which may be tried twice, work once.
create table given_back (
    order_id bigint primary key
);

-- Orders that another program imports by plain SQL get their run from a trigger, in the same transaction.
create function fulfil_imported() returns trigger
language plpgsql as $$
begin
    perform ambo.enqueue_workflow('fulfil', row_to_json(new), key => 'order-' || new.id);
    return new;
end $$;
create trigger fulfil_imported after insert on orders
for each row when (new.imported) execute function fulfil_imported();
