ALTER TABLE atlas_slices ADD COLUMN part INTEGER NOT NULL DEFAULT 1 /* the part that the next message may start, from 1 */;
ALTER TABLE atlas_slices ADD COLUMN sent_part INTEGER NOT NULL DEFAULT 0 /* the highest part whose message is known to be in the queue */;
ALTER TABLE atlas_slices ADD COLUMN enqueued TEXT /* when that message was sent */;

ALTER TABLE atlas_runs ADD COLUMN origin TEXT NOT NULL DEFAULT 'commandline' /* commandline, timer or ondemand */;
ALTER TABLE atlas_runs ADD COLUMN request TEXT /* what was asked for, as JSON: mode, templates and selection */;
ALTER TABLE atlas_runs ADD COLUMN failure TEXT /* why it could not be planned */;
CREATE INDEX atlas_runs_unfinished ON atlas_runs (origin) WHERE ended IS NULL;

CREATE TABLE atlas_records (
    -- Small control records that all processes share: the planner's lease, source slots and their limit, the last report.
    name       TEXT    NOT NULL PRIMARY KEY, -- what it is
    step       INTEGER NOT NULL, -- changes so far
    owner      TEXT, -- who holds it; null = nobody
    held_until TEXT, -- until when the holder is left alone
    value      TEXT    NOT NULL  -- JSON, or empty
) STRICT, WITHOUT ROWID;
