CREATE TABLE {schema}.compositions (
    row_id          pg_catalog.int8        GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              pg_catalog.text COLLATE pg_catalog."C" NOT NULL UNIQUE,
    composition_uid pg_catalog.text        NOT NULL,
    version         pg_catalog.int8        NOT NULL,
    ehr_id          pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    template_id     pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    time_committed  pg_catalog.timestamptz NOT NULL,
    change_type     pg_catalog.text        NOT NULL,
    export_mode     pg_catalog.text        NOT NULL,
    checksum        pg_catalog.text        NOT NULL,
    exported_at     pg_catalog.timestamptz NOT NULL,
    run_id          pg_catalog.text        NOT NULL,
    atlas_version   pg_catalog.text        NOT NULL,
    asked           pg_catalog.timestamptz NOT NULL,
    deleted_at      pg_catalog.timestamptz,
    deleted_reason  pg_catalog.text,
    content         pg_catalog.jsonb       NOT NULL
);

COMMENT ON TABLE {schema}.compositions IS 'One row per versioned composition: its newest version that Atlas has seen.';
COMMENT ON COLUMN {schema}.compositions.row_id IS 'Narrow key inside this schema; what belongs to a row points to it.';
COMMENT ON COLUMN {schema}.compositions.id IS 'Object id of the versioned composition.';
COMMENT ON COLUMN {schema}.compositions.composition_uid IS 'Full version uid, as the server said it.';
COMMENT ON COLUMN {schema}.compositions.version IS 'Version number, from 1.';
COMMENT ON COLUMN {schema}.compositions.ehr_id IS 'EHR it belongs to.';
COMMENT ON COLUMN {schema}.compositions.template_id IS 'Its template.';
COMMENT ON COLUMN {schema}.compositions.time_committed IS 'When the source committed this version.';
COMMENT ON COLUMN {schema}.compositions.change_type IS 'creation, modification, …, as the server said it.';
COMMENT ON COLUMN {schema}.compositions.export_mode IS 'Format of content: preserve, flatten or canonical.';
COMMENT ON COLUMN {schema}.compositions.checksum IS 'SHA-256 of content in RFC 8785 order, hexadecimal.';
COMMENT ON COLUMN {schema}.compositions.exported_at IS 'When Atlas wrote this row.';
COMMENT ON COLUMN {schema}.compositions.run_id IS 'Run that wrote this row: atlas_runs.id.';
COMMENT ON COLUMN {schema}.compositions.atlas_version IS 'Program that wrote this row.';
COMMENT ON COLUMN {schema}.compositions.asked IS 'When the source was asked for what this row says.';
COMMENT ON COLUMN {schema}.compositions.deleted_at IS 'When the source was found to have deleted it; null = it is there.';
COMMENT ON COLUMN {schema}.compositions.deleted_reason IS 'deleted, erased, withdrawn or confirmed; null = it is there.';
COMMENT ON COLUMN {schema}.compositions.content IS 'JSON, in the format that export_mode names.';

CREATE INDEX compositions_by_template_ehr_time
    ON {schema}.compositions (template_id, ehr_id, time_committed) WHERE deleted_at IS NULL;
CREATE INDEX compositions_by_template_time
    ON {schema}.compositions (template_id, time_committed) WHERE deleted_at IS NULL;
CREATE INDEX compositions_by_ehr ON {schema}.compositions (ehr_id);

CREATE TABLE {schema}.atlas_watermarks (
    selection          pg_catalog.text        NOT NULL,
    template_id        pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    until              pg_catalog.timestamptz NOT NULL,
    late_checked_until pg_catalog.timestamptz NOT NULL,
    position           pg_catalog.text,
    PRIMARY KEY (selection, template_id)
);

COMMENT ON TABLE {schema}.atlas_watermarks IS 'How far each template is complete, for one selection.';
COMMENT ON COLUMN {schema}.atlas_watermarks.selection IS 'Which EHRs, times and format were asked for: a digest.';
COMMENT ON COLUMN {schema}.atlas_watermarks.template_id IS 'The template.';
COMMENT ON COLUMN {schema}.atlas_watermarks.until IS 'The watermark: every composition committed before this was seen.';
COMMENT ON COLUMN {schema}.atlas_watermarks.late_checked_until IS 'Before this, also what became visible late was looked for.';
COMMENT ON COLUMN {schema}.atlas_watermarks.position IS 'The source''s own text of until, where it has one.';

CREATE INDEX atlas_watermarks_by_template ON {schema}.atlas_watermarks (template_id, until);

CREATE VIEW {schema}.watermarks AS
    SELECT c.template_id, c.ehr_id, pg_catalog.max(c.time_committed) AS newest_committed,
           pg_catalog.count(*) AS compositions,
           (SELECT pg_catalog.min(w.until) FROM {schema}.atlas_watermarks AS w
            WHERE w.template_id {=} c.template_id) AS checked_until
    FROM {schema}.compositions AS c
    WHERE c.deleted_at IS NULL
    GROUP BY c.template_id, c.ehr_id;

COMMENT ON VIEW {schema}.watermarks IS 'The newest data per template and EHR, and how far the template was checked.';
COMMENT ON COLUMN {schema}.watermarks.template_id IS 'The template.';
COMMENT ON COLUMN {schema}.watermarks.ehr_id IS 'The EHR.';
COMMENT ON COLUMN {schema}.watermarks.newest_committed IS 'Latest commit time among the compositions.';
COMMENT ON COLUMN {schema}.watermarks.compositions IS 'How many there are, deleted ones left out.';
COMMENT ON COLUMN {schema}.watermarks.checked_until IS 'Before this everything was seen; the lowest of all selections.';

CREATE TABLE {schema}.atlas_slices (
    id                pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    run_id            pg_catalog.text        NOT NULL,
    selection         pg_catalog.text        NOT NULL,
    template_id       pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    members           pg_catalog.text,
    kind              pg_catalog.text        NOT NULL,
    window_from       pg_catalog.timestamptz NOT NULL,
    window_to         pg_catalog.timestamptz NOT NULL,
    planned           pg_catalog.timestamptz NOT NULL,
    expected          pg_catalog.int8        NOT NULL,
    state             pg_catalog.text        NOT NULL,
    step              pg_catalog.int8        NOT NULL,
    page              pg_catalog.int8        NOT NULL,
    fence             pg_catalog.int8        NOT NULL,
    owner             pg_catalog.text,
    lease_until       pg_catalog.timestamptz,
    part              pg_catalog.int8        NOT NULL,
    sent_part         pg_catalog.int8        NOT NULL,
    enqueued          pg_catalog.timestamptz,
    moved             pg_catalog.timestamptz,
    next_page         pg_catalog.int8,
    cursor_committed  pg_catalog.timestamptz,
    cursor_object     pg_catalog.text,
    cursor_position   pg_catalog.text,
    count_read        pg_catalog.int8        NOT NULL,
    count_written     pg_catalog.int8        NOT NULL,
    count_inserted    pg_catalog.int8        NOT NULL,
    count_unchanged   pg_catalog.int8        NOT NULL,
    count_filtered    pg_catalog.int8        NOT NULL,
    count_quarantined pg_catalog.int8        NOT NULL,
    count_deleted     pg_catalog.int8        NOT NULL,
    failure           pg_catalog.text
);

COMMENT ON TABLE {schema}.atlas_slices IS 'Units of work: one template or several small ones, one window of commit time.';
COMMENT ON COLUMN {schema}.atlas_slices.id IS 'The same for planners that decide the same.';
COMMENT ON COLUMN {schema}.atlas_slices.run_id IS 'Run that planned it.';
COMMENT ON COLUMN {schema}.atlas_slices.selection IS 'Selection whose watermark it carries.';
COMMENT ON COLUMN {schema}.atlas_slices.template_id IS 'The template; of several, the first one.';
COMMENT ON COLUMN {schema}.atlas_slices.members IS 'Templates that share it, with their counts, as JSON; null = it has one.';
COMMENT ON COLUMN {schema}.atlas_slices.kind IS 'read, compare or retry.';
COMMENT ON COLUMN {schema}.atlas_slices.window_from IS 'First commit time inside.';
COMMENT ON COLUMN {schema}.atlas_slices.window_to IS 'First commit time after.';
COMMENT ON COLUMN {schema}.atlas_slices.planned IS 'The source''s clock when it was planned.';
COMMENT ON COLUMN {schema}.atlas_slices.expected IS 'Compositions that the source counted when it was planned.';
COMMENT ON COLUMN {schema}.atlas_slices.state IS 'open, done or failed.';
COMMENT ON COLUMN {schema}.atlas_slices.step IS 'Changes of this record so far.';
COMMENT ON COLUMN {schema}.atlas_slices.page IS 'Pages that were committed so far.';
COMMENT ON COLUMN {schema}.atlas_slices.fence IS 'Raised by each worker that takes it; an older one may not commit.';
COMMENT ON COLUMN {schema}.atlas_slices.owner IS 'Who works on it; null = nobody.';
COMMENT ON COLUMN {schema}.atlas_slices.lease_until IS 'Until when the owner is left alone.';
COMMENT ON COLUMN {schema}.atlas_slices.part IS 'The part that the next message may start, from 1.';
COMMENT ON COLUMN {schema}.atlas_slices.sent_part IS 'The highest part whose message is known to be in the queue.';
COMMENT ON COLUMN {schema}.atlas_slices.enqueued IS 'When that message was sent.';
COMMENT ON COLUMN {schema}.atlas_slices.moved IS 'When a page was committed last; before the first, when a worker took it first.';
COMMENT ON COLUMN {schema}.atlas_slices.next_page IS 'Compositions in the next page, as the last worker learnt it; null = unknown.';
COMMENT ON COLUMN {schema}.atlas_slices.cursor_committed IS 'Commit time of the last composition that is durable.';
COMMENT ON COLUMN {schema}.atlas_slices.cursor_object IS 'Its object id.';
COMMENT ON COLUMN {schema}.atlas_slices.cursor_position IS 'The source''s own text of its place, where it has one.';
COMMENT ON COLUMN {schema}.atlas_slices.count_read IS 'written + unchanged + filtered + quarantined + deleted.';
COMMENT ON COLUMN {schema}.atlas_slices.count_written IS 'New here, or replaced.';
COMMENT ON COLUMN {schema}.atlas_slices.count_inserted IS 'Of those written: new here, or a tombstone before.';
COMMENT ON COLUMN {schema}.atlas_slices.count_unchanged IS 'Here already, in this version or a newer one.';
COMMENT ON COLUMN {schema}.atlas_slices.count_filtered IS 'Not meant for this copy.';
COMMENT ON COLUMN {schema}.atlas_slices.count_quarantined IS 'In atlas_quarantine.';
COMMENT ON COLUMN {schema}.atlas_slices.count_deleted IS 'Made tombstones.';
COMMENT ON COLUMN {schema}.atlas_slices.failure IS 'Why it failed last.';

CREATE INDEX atlas_slices_by_selection ON {schema}.atlas_slices (selection, template_id, window_from);

CREATE INDEX atlas_slices_by_run ON {schema}.atlas_slices (run_id);

CREATE INDEX atlas_slices_waiting ON {schema}.atlas_slices (run_id, template_id, window_from, window_to, id)
    WHERE state {=} 'open' AND sent_part {<} part;

CREATE INDEX atlas_slices_under_way ON {schema}.atlas_slices (id)
    WHERE state {=} 'open' AND (sent_part {>=} part OR owner IS NOT NULL);

CREATE INDEX atlas_slices_failed ON {schema}.atlas_slices (selection, id) WHERE state {=} 'failed';

CREATE INDEX atlas_slices_read ON {schema}.atlas_slices (selection, template_id, window_from, window_to, id)
    WHERE kind {=} 'read' AND state {=} 'done' AND members IS NULL;
CREATE INDEX atlas_slices_read_together ON {schema}.atlas_slices (selection, window_from, window_to, id)
    WHERE state {=} 'done' AND members IS NOT NULL;

CREATE TABLE {schema}.atlas_counts (
    template_id       pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    count_read        pg_catalog.int8 NOT NULL,
    count_written     pg_catalog.int8 NOT NULL,
    count_inserted    pg_catalog.int8 NOT NULL,
    count_unchanged   pg_catalog.int8 NOT NULL,
    count_filtered    pg_catalog.int8 NOT NULL,
    count_quarantined pg_catalog.int8 NOT NULL,
    count_deleted     pg_catalog.int8 NOT NULL
);

COMMENT ON TABLE {schema}.atlas_counts IS 'What became of the compositions of each template in slices that were removed.';
COMMENT ON COLUMN {schema}.atlas_counts.template_id IS 'The template.';
COMMENT ON COLUMN {schema}.atlas_counts.count_read IS 'written + unchanged + filtered + quarantined + deleted.';
COMMENT ON COLUMN {schema}.atlas_counts.count_written IS 'New here, or replaced.';
COMMENT ON COLUMN {schema}.atlas_counts.count_inserted IS 'Of those written: new here, or a tombstone before.';
COMMENT ON COLUMN {schema}.atlas_counts.count_unchanged IS 'Here already, in this version or a newer one.';
COMMENT ON COLUMN {schema}.atlas_counts.count_filtered IS 'Not meant for this copy.';
COMMENT ON COLUMN {schema}.atlas_counts.count_quarantined IS 'In atlas_quarantine.';
COMMENT ON COLUMN {schema}.atlas_counts.count_deleted IS 'Made tombstones.';

CREATE TABLE {schema}.atlas_landed (
    slice            pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    fence            pg_catalog.int8        NOT NULL,
    page             pg_catalog.int8,
    landed_fence     pg_catalog.int8,
    cursor_committed pg_catalog.timestamptz,
    cursor_object    pg_catalog.text,
    cursor_position  pg_catalog.text,
    counts           pg_catalog.text,
    ways             pg_catalog.text
);

COMMENT ON TABLE {schema}.atlas_landed IS 'The last page of each slice whose ledger is not in this schema.';
COMMENT ON COLUMN {schema}.atlas_landed.slice IS 'The slice.';
COMMENT ON COLUMN {schema}.atlas_landed.fence IS 'Nothing is landed under a lower one.';
COMMENT ON COLUMN {schema}.atlas_landed.page IS 'Number of the last page that landed; null = none.';
COMMENT ON COLUMN {schema}.atlas_landed.landed_fence IS 'The fence under which it landed.';
COMMENT ON COLUMN {schema}.atlas_landed.cursor_committed IS 'Commit time of the last composition of that page.';
COMMENT ON COLUMN {schema}.atlas_landed.cursor_object IS 'Its object id.';
COMMENT ON COLUMN {schema}.atlas_landed.cursor_position IS 'The source''s own text of its place, where it has one.';
COMMENT ON COLUMN {schema}.atlas_landed.counts IS 'What the page adds to the counts of its slice, as JSON.';
COMMENT ON COLUMN {schema}.atlas_landed.ways IS 'What became of each of its rows, as JSON.';

CREATE TABLE {schema}.atlas_quarantine (
    id              pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    composition_uid pg_catalog.text        NOT NULL,
    version         pg_catalog.int8        NOT NULL,
    ehr_id          pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    template_id     pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    time_committed  pg_catalog.timestamptz NOT NULL,
    change_type     pg_catalog.text        NOT NULL,
    reason          pg_catalog.text        NOT NULL,
    detail          pg_catalog.text        NOT NULL,
    run_id          pg_catalog.text        NOT NULL,
    since           pg_catalog.timestamptz NOT NULL,
    tried           pg_catalog.timestamptz NOT NULL,
    tries           pg_catalog.int8        NOT NULL,
    tried_by        pg_catalog.text        NOT NULL
);

COMMENT ON TABLE {schema}.atlas_quarantine IS 'Compositions that could not be copied, each with its reason; at most one entry per object.';
COMMENT ON COLUMN {schema}.atlas_quarantine.id IS 'Object id of the versioned composition.';
COMMENT ON COLUMN {schema}.atlas_quarantine.composition_uid IS 'Full version uid, as the server said it.';
COMMENT ON COLUMN {schema}.atlas_quarantine.version IS 'Version number.';
COMMENT ON COLUMN {schema}.atlas_quarantine.ehr_id IS 'EHR it belongs to.';
COMMENT ON COLUMN {schema}.atlas_quarantine.template_id IS 'Its template.';
COMMENT ON COLUMN {schema}.atlas_quarantine.time_committed IS 'When the source committed this version.';
COMMENT ON COLUMN {schema}.atlas_quarantine.change_type IS 'creation, modification, …, as the server said it.';
COMMENT ON COLUMN {schema}.atlas_quarantine.reason IS 'unreadable, toolarge, inconvertible or unstorable.';
COMMENT ON COLUMN {schema}.atlas_quarantine.detail IS 'Status or path of the culprit.';
COMMENT ON COLUMN {schema}.atlas_quarantine.run_id IS 'Run that put it here.';
COMMENT ON COLUMN {schema}.atlas_quarantine.since IS 'When it was first refused.';
COMMENT ON COLUMN {schema}.atlas_quarantine.tried IS 'When it was last tried.';
COMMENT ON COLUMN {schema}.atlas_quarantine.tries IS 'In how many runs it was tried.';
COMMENT ON COLUMN {schema}.atlas_quarantine.tried_by IS 'Run that tried it last.';

CREATE INDEX atlas_quarantine_by_tried ON {schema}.atlas_quarantine (tried, id);

CREATE INDEX atlas_quarantine_by_template_tried ON {schema}.atlas_quarantine (template_id, tried, id);

CREATE INDEX atlas_quarantine_by_reason ON {schema}.atlas_quarantine (template_id, reason, since, tried);

CREATE TABLE {schema}.atlas_runs (
    id                pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    step              pg_catalog.int8        NOT NULL,
    origin            pg_catalog.text        NOT NULL,
    request           pg_catalog.text,
    selection         pg_catalog.text        NOT NULL,
    mode              pg_catalog.text        NOT NULL,
    started           pg_catalog.timestamptz NOT NULL,
    ended             pg_catalog.timestamptz,
    cut               pg_catalog.timestamptz,
    source_clock      pg_catalog.timestamptz,
    planned           pg_catalog.bool        NOT NULL,
    outcome           pg_catalog.text,
    count_read        pg_catalog.int8        NOT NULL,
    count_written     pg_catalog.int8        NOT NULL,
    count_inserted    pg_catalog.int8        NOT NULL,
    count_unchanged   pg_catalog.int8        NOT NULL,
    count_filtered    pg_catalog.int8        NOT NULL,
    count_quarantined pg_catalog.int8        NOT NULL,
    count_deleted     pg_catalog.int8        NOT NULL,
    failure           pg_catalog.text
);

COMMENT ON TABLE {schema}.atlas_runs IS 'One row per run.';
COMMENT ON COLUMN {schema}.atlas_runs.id IS 'A time-ordered uuid.';
COMMENT ON COLUMN {schema}.atlas_runs.step IS 'Changes of this record so far.';
COMMENT ON COLUMN {schema}.atlas_runs.origin IS 'commandline, timer or ondemand.';
COMMENT ON COLUMN {schema}.atlas_runs.request IS 'What was asked for, as JSON: mode, templates and selection.';
COMMENT ON COLUMN {schema}.atlas_runs.selection IS 'What it was asked to copy: a digest.';
COMMENT ON COLUMN {schema}.atlas_runs.mode IS 'incremental or full.';
COMMENT ON COLUMN {schema}.atlas_runs.started IS 'When it began.';
COMMENT ON COLUMN {schema}.atlas_runs.ended IS 'When it ended; null = it runs, or was killed.';
COMMENT ON COLUMN {schema}.atlas_runs.cut IS 'Commit times before this belong to it; null = nobody has begun to plan it.';
COMMENT ON COLUMN {schema}.atlas_runs.source_clock IS 'The source''s clock when the cut was made.';
COMMENT ON COLUMN {schema}.atlas_runs.planned IS 'Whether all its slices are in atlas_slices.';
COMMENT ON COLUMN {schema}.atlas_runs.outcome IS 'complete, partial, interrupted, failed or cancelled.';
COMMENT ON COLUMN {schema}.atlas_runs.count_read IS 'written + unchanged + filtered + quarantined + deleted.';
COMMENT ON COLUMN {schema}.atlas_runs.count_written IS 'New here, or replaced.';
COMMENT ON COLUMN {schema}.atlas_runs.count_inserted IS 'Of those written: new here, or a tombstone before.';
COMMENT ON COLUMN {schema}.atlas_runs.count_unchanged IS 'Here already, in this version or a newer one.';
COMMENT ON COLUMN {schema}.atlas_runs.count_filtered IS 'Not meant for this copy.';
COMMENT ON COLUMN {schema}.atlas_runs.count_quarantined IS 'In atlas_quarantine.';
COMMENT ON COLUMN {schema}.atlas_runs.count_deleted IS 'Made tombstones.';
COMMENT ON COLUMN {schema}.atlas_runs.failure IS 'Why it could not be planned.';

CREATE INDEX atlas_runs_by_start ON {schema}.atlas_runs (started);

CREATE INDEX atlas_runs_unfinished ON {schema}.atlas_runs (origin) WHERE ended IS NULL;

CREATE TABLE {schema}.atlas_templates (
    template_id  pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    digest       pg_catalog.text        NOT NULL,
    web_template pg_catalog.text        NOT NULL,
    names        pg_catalog.text        NOT NULL,
    fetched      pg_catalog.timestamptz NOT NULL
);

COMMENT ON TABLE {schema}.atlas_templates IS 'Web templates, as the source served them.';
COMMENT ON COLUMN {schema}.atlas_templates.template_id IS 'The template.';
COMMENT ON COLUMN {schema}.atlas_templates.digest IS 'SHA-256 of web_template, hexadecimal.';
COMMENT ON COLUMN {schema}.atlas_templates.web_template IS 'JSON.';
COMMENT ON COLUMN {schema}.atlas_templates.names IS 'FLAT path to SQL name, as JSON, where the format renames; else empty.';
COMMENT ON COLUMN {schema}.atlas_templates.fetched IS 'When it was fetched.';

CREATE TABLE {schema}.atlas_records (
    name       pg_catalog.text COLLATE pg_catalog."C" NOT NULL PRIMARY KEY,
    step       pg_catalog.int8        NOT NULL,
    owner      pg_catalog.text,
    held_until pg_catalog.timestamptz,
    value      pg_catalog.text        NOT NULL
);

COMMENT ON TABLE {schema}.atlas_records IS 'Small control records that all processes share: the planner''s lease, source slots and their limit, the last report.';
COMMENT ON COLUMN {schema}.atlas_records.name IS 'What it is.';
COMMENT ON COLUMN {schema}.atlas_records.step IS 'Changes so far.';
COMMENT ON COLUMN {schema}.atlas_records.owner IS 'Who holds it; null = nobody.';
COMMENT ON COLUMN {schema}.atlas_records.held_until IS 'Until when the holder is left alone.';
COMMENT ON COLUMN {schema}.atlas_records.value IS 'JSON, or empty.';
