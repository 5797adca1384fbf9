CREATE TABLE compositions (
    id              text COLLATE "C" NOT NULL PRIMARY KEY,
    composition_uid text             NOT NULL,
    version         bigint           NOT NULL,
    ehr_id          text COLLATE "C" NOT NULL,
    template_id     text COLLATE "C" NOT NULL,
    time_committed  timestamptz      NOT NULL,
    change_type     text             NOT NULL,
    content         jsonb            NOT NULL,
    export_mode     text             NOT NULL,
    checksum        text             NOT NULL,
    exported_at     timestamptz      NOT NULL,
    run_id          text             NOT NULL,
    atlas_version   text             NOT NULL,
    deleted_at      timestamptz
);
CREATE INDEX compositions_by_template_ehr_time
    ON compositions (template_id, ehr_id, time_committed) WHERE deleted_at IS NULL;
CREATE INDEX compositions_by_template_time
    ON compositions (template_id, time_committed) WHERE deleted_at IS NULL;
CREATE INDEX compositions_by_ehr ON compositions (ehr_id);

COMMENT ON TABLE compositions IS 'One row per versioned composition: its newest version that Atlas has seen.';
COMMENT ON COLUMN compositions.id IS 'Object id of the versioned composition.';
COMMENT ON COLUMN compositions.composition_uid IS 'Full version uid, as the server said it.';
COMMENT ON COLUMN compositions.version IS 'Version number, from 1.';
COMMENT ON COLUMN compositions.ehr_id IS 'EHR it belongs to.';
COMMENT ON COLUMN compositions.template_id IS 'Its template.';
COMMENT ON COLUMN compositions.time_committed IS 'When the source committed this version.';
COMMENT ON COLUMN compositions.change_type IS 'creation, modification, …, as the server said it.';
COMMENT ON COLUMN compositions.content IS 'JSON, in the format that export_mode names.';
COMMENT ON COLUMN compositions.export_mode IS 'preserve, flatten or canonical.';
COMMENT ON COLUMN compositions.checksum IS 'SHA-256 of content in RFC 8785 form, hexadecimal.';
COMMENT ON COLUMN compositions.exported_at IS 'When Atlas wrote this row.';
COMMENT ON COLUMN compositions.run_id IS 'Run that wrote this row: atlas_runs.id.';
COMMENT ON COLUMN compositions.atlas_version IS 'Program that wrote this row.';
COMMENT ON COLUMN compositions.deleted_at IS 'When the source was found to have deleted it; null = it is there.';

CREATE VIEW watermarks AS
    SELECT template_id, ehr_id, max(time_committed) AS newest_committed, count(*) AS compositions
    FROM compositions
    WHERE deleted_at IS NULL
    GROUP BY template_id, ehr_id;

COMMENT ON VIEW watermarks IS
    'Newest data per template and EHR. How far a template was checked is in atlas_watermarks.';
COMMENT ON COLUMN watermarks.template_id IS 'The template.';
COMMENT ON COLUMN watermarks.ehr_id IS 'The EHR.';
COMMENT ON COLUMN watermarks.newest_committed IS 'Latest commit time among the compositions.';
COMMENT ON COLUMN watermarks.compositions IS 'How many there are, deleted ones left out.';

CREATE TABLE atlas_watermarks (
    selection   text             NOT NULL,
    template_id text COLLATE "C" NOT NULL,
    until       timestamptz      NOT NULL,
    late_checked_until     timestamptz      NOT NULL,
    PRIMARY KEY (selection, template_id)
);

COMMENT ON TABLE atlas_watermarks IS 'How far each template is complete, for one selection.';
COMMENT ON COLUMN atlas_watermarks.selection IS 'Which EHRs, times and format were asked for: a digest.';
COMMENT ON COLUMN atlas_watermarks.template_id IS 'The template.';
COMMENT ON COLUMN atlas_watermarks.until IS 'The watermark: every composition committed before this was seen.';
COMMENT ON COLUMN atlas_watermarks.late_checked_until IS 'Before this, also what became visible late was looked for.';

CREATE TABLE atlas_slices (
    id                text COLLATE "C" NOT NULL PRIMARY KEY,
    run_id            text             NOT NULL,
    selection         text             NOT NULL,
    template_id       text COLLATE "C" NOT NULL,
    kind              text             NOT NULL,
    window_from       timestamptz      NOT NULL,
    window_to         timestamptz      NOT NULL,
    planned           timestamptz      NOT NULL,
    expected          bigint           NOT NULL,
    state             text             NOT NULL,
    step              bigint           NOT NULL,
    fence             bigint           NOT NULL,
    owner             text,
    lease_until       timestamptz,
    cursor_committed  timestamptz,
    cursor_object     text,
    count_read        bigint           NOT NULL,
    count_written     bigint           NOT NULL,
    count_unchanged   bigint           NOT NULL,
    count_filtered    bigint           NOT NULL,
    count_quarantined bigint           NOT NULL,
    failure           text
);
CREATE INDEX atlas_slices_by_selection ON atlas_slices (selection, template_id, window_from);

COMMENT ON TABLE atlas_slices IS 'Units of work: one template, one window of commit time.';
COMMENT ON COLUMN atlas_slices.id IS 'The same for planners that decide the same.';
COMMENT ON COLUMN atlas_slices.run_id IS 'Run that planned it.';
COMMENT ON COLUMN atlas_slices.selection IS 'Selection whose watermark it carries.';
COMMENT ON COLUMN atlas_slices.template_id IS 'The template.';
COMMENT ON COLUMN atlas_slices.kind IS 'read, compare or retry.';
COMMENT ON COLUMN atlas_slices.window_from IS 'First commit time inside.';
COMMENT ON COLUMN atlas_slices.window_to IS 'First commit time after.';
COMMENT ON COLUMN atlas_slices.planned IS 'The source''s clock when it was planned.';
COMMENT ON COLUMN atlas_slices.expected IS 'Compositions that the source counted when it was planned.';
COMMENT ON COLUMN atlas_slices.state IS 'open, done or failed.';
COMMENT ON COLUMN atlas_slices.step IS 'Changes of this record so far.';
COMMENT ON COLUMN atlas_slices.fence IS 'Raised by each worker that takes it; an older one may not commit.';
COMMENT ON COLUMN atlas_slices.owner IS 'Who works on it; null = nobody.';
COMMENT ON COLUMN atlas_slices.lease_until IS 'Until when the owner is left alone.';
COMMENT ON COLUMN atlas_slices.cursor_committed IS 'Commit time of the last composition that is durable.';
COMMENT ON COLUMN atlas_slices.cursor_object IS 'Its object id.';
COMMENT ON COLUMN atlas_slices.count_read IS 'written + unchanged + filtered + quarantined.';
COMMENT ON COLUMN atlas_slices.count_written IS 'New here, or replaced.';
COMMENT ON COLUMN atlas_slices.count_unchanged IS 'Here already, in this version or a newer one.';
COMMENT ON COLUMN atlas_slices.count_filtered IS 'Not meant for this copy.';
COMMENT ON COLUMN atlas_slices.count_quarantined IS 'In atlas_quarantine.';
COMMENT ON COLUMN atlas_slices.failure IS 'Why it failed last.';

CREATE TABLE atlas_quarantine (
    id              text COLLATE "C" NOT NULL PRIMARY KEY,
    composition_uid text             NOT NULL,
    version         bigint           NOT NULL,
    ehr_id          text COLLATE "C" NOT NULL,
    template_id     text COLLATE "C" NOT NULL,
    time_committed  timestamptz      NOT NULL,
    change_type     text             NOT NULL,
    reason          text             NOT NULL,
    detail          text             NOT NULL,
    run_id          text             NOT NULL,
    since           timestamptz      NOT NULL,
    tried           timestamptz      NOT NULL,
    tries           bigint           NOT NULL
);
CREATE INDEX atlas_quarantine_by_tried ON atlas_quarantine (tried);

COMMENT ON TABLE atlas_quarantine IS
    'Compositions that could not be copied, each with its reason; at most one entry per object.';
COMMENT ON COLUMN atlas_quarantine.id IS 'Object id of the versioned composition.';
COMMENT ON COLUMN atlas_quarantine.composition_uid IS 'Full version uid, as the server said it.';
COMMENT ON COLUMN atlas_quarantine.version IS 'Version number.';
COMMENT ON COLUMN atlas_quarantine.ehr_id IS 'EHR it belongs to.';
COMMENT ON COLUMN atlas_quarantine.template_id IS 'Its template.';
COMMENT ON COLUMN atlas_quarantine.time_committed IS 'When the source committed this version.';
COMMENT ON COLUMN atlas_quarantine.change_type IS 'creation, modification, …, as the server said it.';
COMMENT ON COLUMN atlas_quarantine.reason IS 'unreadable, toolarge, inconvertible or unstorable.';
COMMENT ON COLUMN atlas_quarantine.detail IS 'Status or path of the culprit.';
COMMENT ON COLUMN atlas_quarantine.run_id IS 'Run that put it here.';
COMMENT ON COLUMN atlas_quarantine.since IS 'When it was first refused.';
COMMENT ON COLUMN atlas_quarantine.tried IS 'When it was last tried.';
COMMENT ON COLUMN atlas_quarantine.tries IS 'How often.';

CREATE TABLE atlas_runs (
    id                text COLLATE "C" NOT NULL PRIMARY KEY,
    selection         text             NOT NULL,
    mode              text             NOT NULL,
    started           timestamptz      NOT NULL,
    ended             timestamptz,
    cut               timestamptz,
    outcome           text,
    count_read        bigint           NOT NULL,
    count_written     bigint           NOT NULL,
    count_unchanged   bigint           NOT NULL,
    count_filtered    bigint           NOT NULL,
    count_quarantined bigint           NOT NULL
);
CREATE INDEX atlas_runs_by_start ON atlas_runs (started);

COMMENT ON TABLE atlas_runs IS 'One row per run.';
COMMENT ON COLUMN atlas_runs.id IS 'A time-ordered uuid.';
COMMENT ON COLUMN atlas_runs.selection IS 'What it was asked to copy: a digest.';
COMMENT ON COLUMN atlas_runs.mode IS 'incremental or full.';
COMMENT ON COLUMN atlas_runs.started IS 'When it began.';
COMMENT ON COLUMN atlas_runs.ended IS 'When it ended; null = it runs, or was killed.';
COMMENT ON COLUMN atlas_runs.cut IS 'Commit times up to here were looked at.';
COMMENT ON COLUMN atlas_runs.outcome IS 'complete, partial, interrupted or failed.';
COMMENT ON COLUMN atlas_runs.count_read IS 'written + unchanged + filtered + quarantined.';
COMMENT ON COLUMN atlas_runs.count_written IS 'New here, or replaced.';
COMMENT ON COLUMN atlas_runs.count_unchanged IS 'Here already, in this version or a newer one.';
COMMENT ON COLUMN atlas_runs.count_filtered IS 'Not meant for this copy.';
COMMENT ON COLUMN atlas_runs.count_quarantined IS 'In atlas_quarantine.';

CREATE TABLE atlas_templates (
    template_id  text COLLATE "C" NOT NULL PRIMARY KEY,
    digest       text             NOT NULL,
    web_template text             NOT NULL,
    names        text             NOT NULL,
    fetched      timestamptz      NOT NULL
);

COMMENT ON TABLE atlas_templates IS 'Web templates, as the source served them.';
COMMENT ON COLUMN atlas_templates.template_id IS 'The template.';
COMMENT ON COLUMN atlas_templates.digest IS 'SHA-256 of web_template, hexadecimal.';
COMMENT ON COLUMN atlas_templates.web_template IS 'JSON.';
COMMENT ON COLUMN atlas_templates.names IS
    'FLAT path to SQL name, as JSON, where the format renames; else empty.';
COMMENT ON COLUMN atlas_templates.fetched IS 'When it was fetched.';
