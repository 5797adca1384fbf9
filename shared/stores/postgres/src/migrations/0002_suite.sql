ALTER TABLE {schema}.atlas_slices
    ADD COLUMN part      pg_catalog.int8 NOT NULL DEFAULT 1,
    ADD COLUMN sent_part     pg_catalog.int8 NOT NULL DEFAULT 0,
    ADD COLUMN enqueued pg_catalog.timestamptz;

COMMENT ON COLUMN {schema}.atlas_slices.part IS 'The part that the next message may start, from 1.';
COMMENT ON COLUMN {schema}.atlas_slices.sent_part IS 'The highest part whose message is known to be in the queue.';
COMMENT ON COLUMN {schema}.atlas_slices.enqueued IS 'When that message was sent.';

ALTER TABLE {schema}.atlas_runs
    ADD COLUMN origin  pg_catalog.text NOT NULL DEFAULT 'commandline',
    ADD COLUMN request pg_catalog.text,
    ADD COLUMN failure pg_catalog.text;
CREATE INDEX atlas_runs_unfinished ON {schema}.atlas_runs (origin) WHERE ended IS NULL;

COMMENT ON COLUMN {schema}.atlas_runs.origin IS 'commandline, timer or ondemand.';
COMMENT ON COLUMN {schema}.atlas_runs.request IS 'What was asked for, as JSON: mode, templates and selection.';
COMMENT ON COLUMN {schema}.atlas_runs.failure IS 'Why it could not be planned.';
COMMENT ON COLUMN {schema}.atlas_runs.outcome IS 'complete, partial, interrupted, failed or cancelled.';

CREATE TABLE {schema}.atlas_records (
    name       pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    step       pg_catalog.int8           NOT NULL,
    owner      pg_catalog.text,
    held_until pg_catalog.timestamptz,
    value      pg_catalog.text             NOT NULL
);

COMMENT ON TABLE {schema}.atlas_records IS
    'Small control records that all processes share: the planner''s lease, source slots and their limit, the last report.';
COMMENT ON COLUMN {schema}.atlas_records.name IS 'What it is.';
COMMENT ON COLUMN {schema}.atlas_records.step IS 'Changes so far.';
COMMENT ON COLUMN {schema}.atlas_records.owner IS 'Who holds it; null = nobody.';
COMMENT ON COLUMN {schema}.atlas_records.held_until IS 'Until when the holder is left alone.';
COMMENT ON COLUMN {schema}.atlas_records.value IS 'JSON, or empty.';
