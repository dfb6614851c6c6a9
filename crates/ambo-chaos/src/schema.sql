-- What stands beside the tables of pgbench.

-- Who enqueued a run, written in the transaction that also does pgbench's work and the enqueue.
create table placed (
    run uuid not null,
    source text not null,
    mark text not null
);
-- What a transaction step of a run has moved; no key, so that twice would show.
create table posting (
    run uuid not null,
    step text not null,
    delta integer not null
);
-- Dead workers, and versions that are gone, are to be found within the round.
update ambo.installation set lease = '3 seconds', pin_grace = '6 seconds';
