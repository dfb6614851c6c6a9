//! The error of every call into Ambo: a stable code, a message, and what it was caused by.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::RunId;

/// The result of a call into Ambo, and the usual result of a workflow.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What went wrong, in a form that programs may decide on. Each has a page under `docs/errors/`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All codes, in the order of their numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The code as it is printed: `AMBO001`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => concat!("AMBO", $code),)* }
            }

            /// The SQLSTATE with which the SQL functions raise it: `AM001`.
            pub const fn sqlstate(self) -> &'static str {
                match self { $(Code::$name => concat!("AM", $code),)* }
            }

            /// The code with this SQLSTATE or this printed form.
            pub fn parse(text: &str) -> Option<Code> {
                Code::ALL.iter().copied().find(|code| code.as_str() == text || code.sqlstate() == text)
            }
        }
    };
}

codes! {
    /// A name or key is empty, too long, or holds a NUL byte.
    InvalidName = "001",
    /// The queue does not exist.
    UnknownQueue = "002",
    /// The idempotency key names a run that has another input.
    KeyConflict = "003",
    /// An input, output or error is larger than the limit.
    TooLarge = "004",
    /// An option is out of its range, or options contradict each other.
    InvalidOption = "005",
    /// The arrays of a bulk call do not fit together.
    InvalidBulk = "006",
    /// A value cannot be written as JSON.
    NotEncodable = "007",
    /// The queue takes no groups.
    NoGroups = "008",
    /// The queue is being drained and takes no new runs.
    Draining = "009",
    /// The database holds no schema of Ambo, or one that does not fit this version.
    SchemaMismatch = "010",
    /// The database was restored or cloned and has not been adopted.
    NotAdopted = "011",
    /// There is no partition for the present time.
    NoPartition = "012",
    /// No workflow of this name is registered, or two are.
    Registration = "020",
    /// The workflow made another call than the recorded one at a position.
    NonDeterminism = "021",
    /// The code of a step or workflow panicked.
    Panicked = "022",
    /// An attempt of a step took longer than its time limit.
    StepTimeout = "023",
    /// The run took longer than its time limit.
    RunTimeout = "024",
    /// The run was cancelled.
    Cancelled = "025",
    /// Too many workers died with the run.
    Poisoned = "026",
    /// The application's own code failed.
    Application = "027",
    /// A recorded value does not fit the type that the code expects.
    NotDecodable = "028",
    /// What a run did could not be undone.
    NotCompensated = "029",
    /// The worker lost its lease: another one owns the run now.
    Fenced = "030",
    /// The body of a transaction step committed or rolled back by hand.
    CommittedByHand = "031",
    /// The run had to start by a time and did not.
    Expired = "032",
    /// There is no such run.
    UnknownRun = "033",
    /// The run is in a state in which this cannot be done.
    WrongState = "034",
    /// There is no such schedule.
    UnknownSchedule = "035",
    /// The run has recorded more calls than its worker allows.
    HistoryLimit = "036",
    /// A graph was declared that cannot run as it is meant.
    InvalidGraph = "037",
    /// What was sent to a run does not fit the type that it waits for.
    UnfitMessage = "038",
    /// The grace of a cancel was over before the run was undone.
    GraceOver = "039",
    /// The database cannot be reached, or does not accept writes.
    Unavailable = "040",
    /// The configuration is wrong.
    Configuration = "041",
    /// Waiting ended before the result was there.
    WaitTimeout = "042",
    /// The worker is stopping.
    Stopping = "043",
    /// The database refused a statement for a reason of its own.
    Database = "050",
    /// A payload is encrypted or stored apart, and this program has not the key or the store.
    NoVault = "060",
    /// A payload cannot be encrypted or decrypted.
    Undecipherable = "061",
    /// The object store does not hold a payload.
    ObjectMissing = "062",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong, with a stable [`Code`].
///
/// An `Error` survives being recorded: a run that is replayed sees the same code, message and, where the
/// application failed with an error of its own, the same [`application`](Error::application) value. Messages
/// never contain payloads.
///
/// # Example: an application's own error comes through
/// ```
/// use serde::{Deserialize, Serialize};
/// #[derive(Debug, Serialize, Deserialize, PartialEq)]
/// struct Declined { reason: String }
///
/// let error = ambo::Error::application(&Declined { reason: "limit".into() }, "card declined");
/// let stored = serde_json::to_string(&error).unwrap();
/// let replayed: ambo::Error = serde_json::from_str(&stored).unwrap();
/// assert_eq!(replayed.code(), ambo::Code::Application);
/// assert_eq!(replayed.details::<Declined>(), Some(Declined { reason: "limit".into() }));
/// ```
#[derive(Serialize, Deserialize)]
pub struct Error {
    #[serde(with = "code_as_text")]
    code: Code,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    application: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sqlstate: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    permanent: bool,
    #[serde(skip)]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the text of an error begins with that is a child's.
const OF_CHILD: &str = "child run ";

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        // Our SQL functions begin with the code, for those who have no other text; here it is shown in any case.
        if let Some(rest) = message.strip_prefix(code.as_str()).and_then(|rest| rest.strip_prefix(": ")) {
            message = rest.to_owned();
        }
        Error { code, message, application: None, sqlstate: None, permanent: false, source: None }
    }

    pub(crate) fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    pub(crate) fn with_sqlstate(mut self, sqlstate: &str) -> Self {
        self.sqlstate = Some(sqlstate.to_owned());
        self
    }

    /// The same as that of a child, which its text names; of what has come through several generations, the first.
    pub(crate) fn of_child(mut self, child: RunId) -> Self {
        if !self.message.starts_with(OF_CHILD) {
            self.message = format!("{OF_CHILD}{child}: {}", self.message);
        }
        self
    }

    /// An error of the application, with a message and no details.
    pub fn message(message: impl fmt::Display) -> Self {
        Error::new(Code::Application, message.to_string())
    }

    /// An error of the application that keeps `details` through replay. Details that cannot be written as
    /// JSON are left out.
    pub fn application(details: &impl Serialize, message: impl fmt::Display) -> Self {
        let mut error = Error::message(message);
        error.application = serde_json::to_value(details).ok();
        error
    }

    /// Turns any error into one of Ambo, keeping its text (and it as the source until it is recorded).
    pub fn other(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::message(&source).with_source(source)
    }

    /// Says that to try again is no use: neither the step that fails with it nor its run is, whatever their policies.
    ///
    /// # Example
    /// ```
    /// let error = ambo::Error::message("the card is stolen").permanent();
    /// assert!(error.is_permanent());
    /// ```
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.permanent = true;
        self
    }

    /// Whether it says that somebody has to mend something before the run that failed of it goes on: of a child it is said that
    /// it is dead of that, and of a signal, an event or a result that it does not fit.
    pub(crate) fn is_to_be_mended(&self) -> bool {
        matches!(
            self.code,
            Code::NonDeterminism
                | Code::Poisoned
                | Code::NotDecodable
                | Code::HistoryLimit
                | Code::UnfitMessage
        )
    }

    /// Whether to try again is no use.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The application's own error, if this is one and it has the shape of `T`.
    pub fn details<T: DeserializeOwned>(&self) -> Option<T> {
        self.application.clone().and_then(|value| serde_json::from_value(value).ok())
    }

    /// The SQLSTATE that the database gave, where one did.
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// Whether the transaction may simply be run again: serialization failure or deadlock.
    pub fn is_conflict(&self) -> bool {
        matches!(self.sqlstate(), Some("40001" | "40P01"))
    }

    /// Whether the database was out of reach or read-only: the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        self.code == Code::Unavailable
    }

    pub(crate) fn text(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One of Ambo's that was made an error of the application.
        if self.message.starts_with("AMBO") {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.code, self.message)
        }
    }
}

/// Without the application's details, which are payloads, and without the source, which may quote one.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Error");
        shown.field("code", &self.code).field("message", &self.message);
        if let Some(sqlstate) = &self.sqlstate {
            shown.field("sqlstate", sqlstate);
        }
        if self.permanent {
            shown.field("permanent", &true);
        }
        shown.finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::other(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        // The text of a serde error may quote the payload: only where it stands is told, and it is no source.
        Error::new(Code::NotEncodable, format!("JSON, line {} column {}", error.line(), error.column()))
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Error::message(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Error::message(message)
    }
}

mod code_as_text {
    use super::Code;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(code.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        // A code of a newer version is still an error.
        Ok(Code::parse(&text).unwrap_or(Code::Database))
    }
}

/// How a step or run failed: with the application's own error, or with one of Ambo's.
#[derive(Debug)]
pub enum Failure<E> {
    /// The error that the application's code returned, the same after replay.
    Application(E),
    /// A time limit, a panic, a cancel, or another reason that is not the application's.
    Ambo(Error),
}

impl<E: From<Error>> Failure<E> {
    /// The application's error, or Ambo's turned into one: for `cx.step(...).await.map_err(Failure::flatten)?` in a
    /// workflow whose error is its own type.
    pub fn flatten(self) -> E {
        match self {
            Failure::Application(error) => error,
            Failure::Ambo(error) => error.into(),
        }
    }
}

impl<E: 'static> Failure<E> {
    /// The error as one of Ambo's type, if it is of that: also where the application's own type is that.
    pub(crate) fn as_error(&self) -> Option<&Error> {
        match self {
            Failure::Application(error) => (error as &dyn std::any::Any).downcast_ref(),
            Failure::Ambo(error) => Some(error),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Application(error) => error.fmt(f),
            Failure::Ambo(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for Failure<E> {}

impl<E: ApplicationError> From<Failure<E>> for Error {
    fn from(failure: Failure<E>) -> Self {
        match failure {
            Failure::Application(error) => to_error(error),
            Failure::Ambo(error) => error,
        }
    }
}

/// What a step or workflow may fail with: anything that can be recorded and shown. [`Error`] is one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be recorded as the error of a step or workflow",
    note = "derive `serde::Serialize` and `serde::Deserialize` and implement `Display` for it, or turn it into \
            an `ambo::Error` with `.map_err(ambo::Error::other)`"
)]
pub trait ApplicationError: Serialize + DeserializeOwned + fmt::Display + Send + Sync + 'static {}
#[diagnostic::do_not_recommend]
impl<E: Serialize + DeserializeOwned + fmt::Display + Send + Sync + 'static> ApplicationError for E {}

/// The recorded form of an application's error; an [`Error`] stays what it is.
pub(crate) fn to_error<E: ApplicationError>(error: E) -> Error {
    let mut slot = Some(error);
    if let Some(error) = (&mut slot as &mut dyn std::any::Any).downcast_mut::<Option<Error>>() {
        return error.take().unwrap_or_else(|| Error::message("taken"));
    }
    slot.map_or_else(|| Error::message("taken"), |error| Error::application(&error, &error))
}

/// The typed form of a recorded error.
pub(crate) fn to_failure<E: ApplicationError>(error: Error) -> Failure<E> {
    let mut slot = Some(error);
    if let Some(error) = (&mut slot as &mut dyn std::any::Any).downcast_mut::<Option<E>>()
        && let Some(error) = error.take()
    {
        return Failure::Application(error);
    }
    let error = slot.unwrap_or_else(|| Error::message("taken"));
    match error.details::<E>() {
        Some(own) => Failure::Application(own),
        None => Failure::Ambo(error),
    }
}
