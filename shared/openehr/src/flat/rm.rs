//! The reference model types that FLAT has rules for, and how they descend from each other.

/// Defines the types, their names and their parents in one table.
macro_rules! rm_types {
    ($($variant:ident $name:literal < $parent:ident,)*) => {
        /// A type of the openEHR reference model, as far as FLAT tells types apart.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum RmType {
            /// Any other type, such as OBJECT_REF or STRING.
            Other,
            $(#[doc = $name] $variant,)*
        }

        impl RmType {
            /// The type with this name; a type parameter is ignored.
            pub fn from_name(name: &str) -> Self {
                let name = name.split_once('<').map_or(name, |(outer, _)| outer);
                match name {
                    $($name => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// The type above this one; [`RmType::Other`] where nothing of interest is above.
            fn parent(self) -> Self {
                match self {
                    Self::Other => Self::Other,
                    $(Self::$variant => Self::$parent,)*
                }
            }
        }
    };
}

rm_types! {
    Locatable "LOCATABLE" < Other,
    Composition "COMPOSITION" < Locatable,
    ContentItem "CONTENT_ITEM" < Locatable,
    Section "SECTION" < ContentItem,
    Entry "ENTRY" < ContentItem,
    AdminEntry "ADMIN_ENTRY" < Entry,
    GenericEntry "GENERIC_ENTRY" < ContentItem,
    CareEntry "CARE_ENTRY" < Entry,
    Observation "OBSERVATION" < CareEntry,
    Evaluation "EVALUATION" < CareEntry,
    Instruction "INSTRUCTION" < CareEntry,
    Action "ACTION" < CareEntry,
    Activity "ACTIVITY" < Locatable,
    DataStructure "DATA_STRUCTURE" < Locatable,
    History "HISTORY" < DataStructure,
    ItemStructure "ITEM_STRUCTURE" < DataStructure,
    ItemTree "ITEM_TREE" < ItemStructure,
    ItemList "ITEM_LIST" < ItemStructure,
    ItemSingle "ITEM_SINGLE" < ItemStructure,
    ItemTable "ITEM_TABLE" < ItemStructure,
    Event "EVENT" < Locatable,
    PointEvent "POINT_EVENT" < Event,
    IntervalEvent "INTERVAL_EVENT" < Event,
    Item "ITEM" < Locatable,
    Cluster "CLUSTER" < Item,
    Element "ELEMENT" < Item,
    EventContext "EVENT_CONTEXT" < Other,
    IsmTransition "ISM_TRANSITION" < Other,
    InstructionDetails "INSTRUCTION_DETAILS" < Other,
    DataValue "DATA_VALUE" < Other,
    DvBoolean "DV_BOOLEAN" < DataValue,
    DvIdentifier "DV_IDENTIFIER" < DataValue,
    DvInterval "DV_INTERVAL" < DataValue,
    DvText "DV_TEXT" < DataValue,
    DvCodedText "DV_CODED_TEXT" < DvText,
    DvUri "DV_URI" < DataValue,
    DvEhrUri "DV_EHR_URI" < DvUri,
    DvEncapsulated "DV_ENCAPSULATED" < DataValue,
    DvMultimedia "DV_MULTIMEDIA" < DvEncapsulated,
    DvParsable "DV_PARSABLE" < DvEncapsulated,
    DvOrdered "DV_ORDERED" < DataValue,
    DvOrdinal "DV_ORDINAL" < DvOrdered,
    DvScale "DV_SCALE" < DvOrdered,
    DvQuantified "DV_QUANTIFIED" < DvOrdered,
    DvAmount "DV_AMOUNT" < DvQuantified,
    DvQuantity "DV_QUANTITY" < DvAmount,
    DvCount "DV_COUNT" < DvAmount,
    DvProportion "DV_PROPORTION" < DvAmount,
    DvDuration "DV_DURATION" < DvAmount,
    DvAbsoluteQuantity "DV_ABSOLUTE_QUANTITY" < DvQuantified,
    DvTemporal "DV_TEMPORAL" < DvAbsoluteQuantity,
    DvDate "DV_DATE" < DvTemporal,
    DvTime "DV_TIME" < DvTemporal,
    DvDateTime "DV_DATE_TIME" < DvTemporal,
    PartyProxy "PARTY_PROXY" < Other,
    PartySelf "PARTY_SELF" < PartyProxy,
    PartyIdentified "PARTY_IDENTIFIED" < PartyProxy,
    PartyRelated "PARTY_RELATED" < PartyIdentified,
    Participation "PARTICIPATION" < Other,
    CodePhrase "CODE_PHRASE" < Other,
    FeederAudit "FEEDER_AUDIT" < Other,
    TermMapping "TERM_MAPPING" < Other,
}

impl RmType {
    /// Whether a value of this type can stand where `other` is asked for.
    pub fn is(self, other: Self) -> bool {
        let mut own = self;
        while own != other {
            if own == Self::Other {
                return false;
            }
            own = own.parent();
        }
        true
    }

    /// Whether the walk goes into an object of this type instead of writing it as one value.
    pub(super) fn is_walked(self) -> bool {
        self.is(Self::Locatable)
            || matches!(
                self,
                Self::EventContext
                    | Self::IsmTransition
                    | Self::InstructionDetails
                    | Self::DvInterval
            )
    }

    /// Containers whose names never show in a FLAT path.
    pub(super) fn is_nameless(self) -> bool {
        self == Self::History || self.is(Self::ItemStructure)
    }
}
