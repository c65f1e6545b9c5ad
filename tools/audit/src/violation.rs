//! What an audit finds wrong.

use crate::PAGE;
use crate::format::Format;
use crate::owner::Owner;
use std::fmt;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A frame of another compartment, or of the hypervisor, where it has no place.
    Foreign(Format),
    /// A host page that is writable and executable.
    WritableExecutable,
    /// A host page for privilege level 3.
    UserAccess,
    /// Code, constants or shared tables that can be written.
    Writable,
    /// 2 MiB or more of memory mapped as it comes.
    DirectMap,
    /// A secret in a frame that is nobody's.
    SecretInFree,
    /// A secret in what all compartments share.
    SecretInShared,
    /// A secret anywhere else.
    SecretElsewhere,
    /// The frame table says something that no table confirms, or that tables deny.
    StaleOwner,
    /// A channel in a compartment that is no party to it, or that the manifest does not have.
    ChannelThird(Format),
    /// Page tables within reach of a guest.
    TableInGuest(Format),
    /// A control structure within reach of a guest.
    ControlInGuest(Format),
    /// A guest reaches a frame of its own compartment that is not RAM.
    NotRam(Format),
    /// A guest reaches a frame at two addresses.
    Alias(Format),
    /// Guest-physical addresses where the manifest gives no RAM.
    BeyondRam(Format),
    /// An address outside RAM.
    Device(Format),
    /// A root's entry for the shared part is not that of the others.
    SharedDiffers,
    /// The image in memory is not the ELF's.
    ImageDiffers,
    /// A root, or a control structure, in a frame that is not for it.
    Misplaced,
    /// A guest would run without nested tables.
    Bare,
    /// Page tables with content that no root leads to.
    HiddenTable,
    /// One table at two places.
    TableTwice(Format),
    /// An entry that the processor refuses, or a table outside RAM.
    Malformed(Format),
    /// A guest of the manifest without compartment or nested tables, or the other way round.
    Missing,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, format) = match self {
            Self::Foreign(format) => ("foreign frame", Some(format)),
            Self::WritableExecutable => ("writable and executable", None),
            Self::UserAccess => ("open to privilege level 3", None),
            Self::Writable => ("writable, but to be constant", None),
            Self::DirectMap => ("direct map", None),
            Self::SecretInFree => ("secret in a freed frame", None),
            Self::SecretInShared => ("secret in the shared part", None),
            Self::SecretElsewhere => ("secret outside its compartment", None),
            Self::StaleOwner => ("stale frame owner", None),
            Self::ChannelThird(format) => ("channel in a third compartment", Some(format)),
            Self::TableInGuest(format) => ("page table within its guest's reach", Some(format)),
            Self::ControlInGuest(format) => ("control structure within a guest's reach", Some(format)),
            Self::NotRam(format) => ("guest reaches what is not its RAM", Some(format)),
            Self::Alias(format) => ("frame at two addresses", Some(format)),
            Self::BeyondRam(format) => ("address that the manifest gives no RAM", Some(format)),
            Self::Device(format) => ("address outside RAM", Some(format)),
            Self::SharedDiffers => ("shared part differs", None),
            Self::ImageDiffers => ("image in memory is not the ELF's", None),
            Self::Misplaced => ("in a frame that is not for it", None),
            Self::Bare => ("guest without nested tables", None),
            Self::HiddenTable => ("page table that no root leads to", None),
            Self::TableTwice(format) => ("table at two places", Some(format)),
            Self::Malformed(format) => ("malformed entry or table", Some(format)),
            Self::Missing => ("not as the manifest has it", None),
        };
        f.write_str(text)?;
        format.map_or(Ok(()), |format| write!(f, ", {}", format.name()))
    }
}

/// Something wrong; neighbouring frames of a kind are one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What.
    pub kind: Kind,
    /// In whose compartment; empty if it is nobody's.
    pub compartment: String,
    /// Address before translation: host-virtual or guest-physical. Of a secret: its physical address.
    pub at: Option<u64>,
    /// Physical address of the first frame.
    pub frame: u64,
    /// How many frames.
    pub count: u64,
    /// Whose the frame table says it is.
    pub owner: Owner,
    /// More, for people.
    pub note: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: frame {:#x}", self.kind, self.frame)?;
        if self.count > 1 {
            write!(f, " and {} more", self.count - 1)?;
        }
        if let Some(at) = self.at {
            write!(f, " at {at:#x}")?;
        }
        if !self.compartment.is_empty() {
            write!(f, " in the compartment of {}", self.compartment)?;
        }
        write!(f, ", owner by the frame table: {}", self.owner)?;
        if self.note.is_empty() { Ok(()) } else { write!(f, "; {}", self.note) }
    }
}

/// Violations, where neighbours become one.
#[derive(Debug, Default)]
pub(crate) struct Found(pub Vec<Violation>);

impl Found {
    pub fn add(&mut self, new: Violation) {
        // What is found frame by frame alternates between kinds: look a little back.
        let same = self.0.iter_mut().rev().take(4).find(|last| {
            let offset = last.count * PAGE;
            last.kind == new.kind
                && last.compartment == new.compartment
                && last.owner == new.owner
                && last.note == new.note
                && last.frame.wrapping_add(offset) == new.frame
                && last.at.map(|at| at.wrapping_add(offset)) == new.at
        });
        match same {
            Some(last) => last.count += new.count,
            None => self.0.push(new),
        }
    }
}
