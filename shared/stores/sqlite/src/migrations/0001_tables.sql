CREATE TABLE compositions (
    -- One row per versioned composition: its newest version that Atlas has seen.
    -- Times are UTC text such as 2026-11-23T03:50:12.116601Z: they sort as they follow each other.
    id              TEXT    NOT NULL PRIMARY KEY, -- object id of the versioned composition
    composition_uid TEXT    NOT NULL, -- full version uid, as the server said it
    version         INTEGER NOT NULL, -- version number, from 1
    ehr_id          TEXT    NOT NULL, -- EHR it belongs to
    template_id     TEXT    NOT NULL, -- its template
    time_committed  TEXT    NOT NULL, -- when the source committed this version
    change_type     TEXT    NOT NULL, -- creation, modification, …, as the server said it
    content         TEXT    NOT NULL, -- JSON, in the format that export_mode names
    export_mode     TEXT    NOT NULL, -- preserve, flatten or canonical
    checksum        TEXT    NOT NULL, -- SHA-256 of content in RFC 8785 form, hexadecimal
    exported_at     TEXT    NOT NULL, -- when Atlas wrote this row
    run_id          TEXT    NOT NULL, -- run that wrote this row: atlas_runs.id
    atlas_version   TEXT    NOT NULL, -- program that wrote this row
    deleted_at      TEXT              -- when the source was found to have deleted it; null = it is there
) STRICT;

CREATE INDEX compositions_by_template_ehr_time
    ON compositions (template_id, ehr_id, time_committed) WHERE deleted_at IS NULL;

CREATE INDEX compositions_by_template_time
    ON compositions (template_id, time_committed) WHERE deleted_at IS NULL;

CREATE INDEX compositions_by_ehr ON compositions (ehr_id);

CREATE VIEW watermarks AS
    -- Newest data per template and EHR. How far a template was checked is in atlas_watermarks.
    SELECT template_id,                            -- the template
           ehr_id,                                 -- the EHR
           max(time_committed) AS newest_committed, -- latest commit time among the compositions
           count(*)            AS compositions      -- how many there are, deleted ones left out
    FROM compositions
    WHERE deleted_at IS NULL
    GROUP BY template_id, ehr_id;

CREATE TABLE atlas_watermarks (
    -- How far each template is complete, for one selection.
    selection   TEXT NOT NULL, -- which EHRs, times and format were asked for: a digest
    template_id TEXT NOT NULL, -- the template
    until       TEXT NOT NULL, -- the watermark: every composition committed before this was seen
    late_checked_until     TEXT NOT NULL, -- before this, also what became visible late was looked for
    PRIMARY KEY (selection, template_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE atlas_slices (
    -- Units of work: one template, one window of commit time.
    id                TEXT    NOT NULL PRIMARY KEY, -- the same for planners that decide the same
    run_id            TEXT    NOT NULL, -- run that planned it
    selection         TEXT    NOT NULL, -- selection whose watermark it carries
    template_id       TEXT    NOT NULL, -- the template
    kind              TEXT    NOT NULL, -- read, compare or retry
    window_from       TEXT    NOT NULL, -- first commit time inside
    window_to         TEXT    NOT NULL, -- first commit time after
    planned           TEXT    NOT NULL, -- the source's clock when it was planned
    expected          INTEGER NOT NULL, -- compositions that the source counted when it was planned
    state             TEXT    NOT NULL, -- open, done or failed
    step              INTEGER NOT NULL, -- changes of this record so far
    fence             INTEGER NOT NULL, -- raised by each worker that takes it; an older one may not commit
    owner             TEXT,             -- who works on it; null = nobody
    lease_until       TEXT,             -- until when the owner is left alone
    cursor_committed  TEXT,             -- commit time of the last composition that is durable
    cursor_object     TEXT,             -- its object id
    count_read        INTEGER NOT NULL, -- written + unchanged + filtered + quarantined
    count_written     INTEGER NOT NULL, -- new here, or replaced
    count_unchanged   INTEGER NOT NULL, -- here already, in this version or a newer one
    count_filtered    INTEGER NOT NULL, -- not meant for this copy
    count_quarantined INTEGER NOT NULL, -- in atlas_quarantine
    failure           TEXT              -- why it failed last
) STRICT;

CREATE INDEX atlas_slices_by_selection ON atlas_slices (selection, template_id, window_from);

CREATE TABLE atlas_quarantine (
    -- Compositions that could not be copied, each with its reason; at most one entry per object.
    id              TEXT    NOT NULL PRIMARY KEY, -- object id of the versioned composition
    composition_uid TEXT    NOT NULL, -- full version uid, as the server said it
    version         INTEGER NOT NULL, -- version number
    ehr_id          TEXT    NOT NULL, -- EHR it belongs to
    template_id     TEXT    NOT NULL, -- its template
    time_committed  TEXT    NOT NULL, -- when the source committed this version
    change_type     TEXT    NOT NULL, -- creation, modification, …, as the server said it
    reason          TEXT    NOT NULL, -- unreadable, toolarge, inconvertible or unstorable
    detail          TEXT    NOT NULL, -- status or path of the culprit
    run_id          TEXT    NOT NULL, -- run that put it here
    since           TEXT    NOT NULL, -- when it was first refused
    tried           TEXT    NOT NULL, -- when it was last tried
    tries           INTEGER NOT NULL  -- how often
) STRICT;

CREATE INDEX atlas_quarantine_by_tried ON atlas_quarantine (tried);

CREATE TABLE atlas_runs (
    -- One row per run.
    id                TEXT    NOT NULL PRIMARY KEY, -- a time-ordered uuid
    selection         TEXT    NOT NULL, -- what it was asked to copy: a digest
    mode              TEXT    NOT NULL, -- incremental or full
    started           TEXT    NOT NULL, -- when it began
    ended             TEXT,             -- when it ended; null = it runs, or was killed
    cut               TEXT,             -- commit times up to here were looked at
    outcome           TEXT,             -- complete, partial, interrupted or failed
    count_read        INTEGER NOT NULL, -- written + unchanged + filtered + quarantined
    count_written     INTEGER NOT NULL, -- new here, or replaced
    count_unchanged   INTEGER NOT NULL, -- here already, in this version or a newer one
    count_filtered    INTEGER NOT NULL, -- not meant for this copy
    count_quarantined INTEGER NOT NULL  -- in atlas_quarantine
) STRICT;

CREATE INDEX atlas_runs_by_start ON atlas_runs (started);

CREATE TABLE atlas_templates (
    -- Web templates, as the source served them.
    template_id  TEXT NOT NULL PRIMARY KEY, -- the template
    digest       TEXT NOT NULL, -- SHA-256 of web_template, hexadecimal
    web_template TEXT NOT NULL, -- JSON
    names        TEXT NOT NULL, -- FLAT path to SQL name, as JSON, where the format renames; else empty
    fetched      TEXT NOT NULL  -- when it was fetched
) STRICT;
