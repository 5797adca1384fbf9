ALTER TABLE atlas_slices
    ADD COLUMN part      bigint NOT NULL DEFAULT 1,
    ADD COLUMN sent_part     bigint NOT NULL DEFAULT 0,
    ADD COLUMN enqueued timestamptz;

COMMENT ON COLUMN atlas_slices.part IS 'The part that the next message may start, from 1.';
COMMENT ON COLUMN atlas_slices.sent_part IS 'The highest part whose message is known to be in the queue.';
COMMENT ON COLUMN atlas_slices.enqueued IS 'When that message was sent.';

ALTER TABLE atlas_runs
    ADD COLUMN origin  text NOT NULL DEFAULT 'commandline',
    ADD COLUMN request text,
    ADD COLUMN failure text;
CREATE INDEX atlas_runs_unfinished ON atlas_runs (origin) WHERE ended IS NULL;

COMMENT ON COLUMN atlas_runs.origin IS 'commandline, timer or ondemand.';
COMMENT ON COLUMN atlas_runs.request IS 'What was asked for, as JSON: mode, templates and selection.';
COMMENT ON COLUMN atlas_runs.failure IS 'Why it could not be planned.';
COMMENT ON COLUMN atlas_runs.outcome IS 'complete, partial, interrupted, failed or cancelled.';

CREATE TABLE atlas_records (
    name       text COLLATE "C" NOT NULL PRIMARY KEY,
    step       bigint           NOT NULL,
    owner      text,
    held_until timestamptz,
    value      text             NOT NULL
);

COMMENT ON TABLE atlas_records IS
    'Small control records that all processes share: the planner''s lease, source slots and their limit, the last report.';
COMMENT ON COLUMN atlas_records.name IS 'What it is.';
COMMENT ON COLUMN atlas_records.step IS 'Changes so far.';
COMMENT ON COLUMN atlas_records.owner IS 'Who holds it; null = nobody.';
COMMENT ON COLUMN atlas_records.held_until IS 'Until when the holder is left alone.';
COMMENT ON COLUMN atlas_records.value IS 'JSON, or empty.';
