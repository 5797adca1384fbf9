//! The templates of the sample CDR, of our own making: archetypes and texts are invented.
//!
//! Between them they have what makes templates hard: repeating entries, events and clusters, a choice of
//! data types, optional context items, and an id with blanks in it.

/// A template of the sample CDR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Template {
    /// Blood pressure with one or more readings, pulse, oxygen saturation. Half of all compositions.
    VitalSigns,
    /// Laboratory results with repeating analytes. Three in ten compositions.
    LaboratoryReport,
    /// Orders of one or more medicines. One in five compositions.
    MedicationOrder,
}

impl Template {
    /// Every template of the server, in the order of its list.
    pub const ALL: [Self; 3] = [
        Self::VitalSigns,
        Self::LaboratoryReport,
        Self::MedicationOrder,
    ];

    /// The template id, as archetype details, AQL and the template list have it.
    pub fn id(self) -> &'static str {
        match self {
            Self::VitalSigns => "sample_vital_signs.v1",
            Self::LaboratoryReport => "sample_laboratory_report.v1",
            Self::MedicationOrder => "Sample medication order.v1",
        }
    }

    /// The template with this id.
    pub fn from_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.id() == id)
    }

    /// Name of the compositions, which is the name of the template's root node.
    pub(crate) fn concept(self) -> &'static str {
        match self {
            Self::VitalSigns => "Vital signs",
            Self::LaboratoryReport => "Laboratory report",
            Self::MedicationOrder => "Medication order",
        }
    }

    pub(crate) fn root_archetype(self) -> &'static str {
        match self {
            Self::VitalSigns => "openEHR-EHR-COMPOSITION.atlas_encounter.v1",
            Self::LaboratoryReport => "openEHR-EHR-COMPOSITION.atlas_report.v1",
            Self::MedicationOrder => "openEHR-EHR-COMPOSITION.atlas_prescription.v1",
        }
    }

    /// The web template, JSON in the form EHRbase serves it (version 2.3).
    pub fn web_template(self) -> &'static str {
        match self {
            Self::VitalSigns => include_str!("../templates/sample_vital_signs.v1.json"),
            Self::LaboratoryReport => include_str!("../templates/sample_laboratory_report.v1.json"),
            Self::MedicationOrder => include_str!("../templates/sample_medication_order.v1.json"),
        }
    }
}
