//! What both macros read: their options, and an async function with nothing that a recorded call could not have.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::parse::Parser as _;
use syn::spanned::Spanned as _;
use syn::{Attribute, Error, Expr, FnArg, Ident, ItemFn, LitStr, PatType, Path, Result, ReturnType, Type};

/// Bytes in the name of a workflow or step; the database holds no longer one.
const NAME_BYTES_MAX: usize = 200;

/// The options in the parentheses of the attribute.
pub(crate) struct Options {
    /// Where the crate `ambo` is, if not at `::ambo`.
    ambo: Option<Path>,
    /// The recorded name, where it is not the function's.
    pub(crate) name: Option<LitStr>,
    /// The retry policy.
    pub(crate) retry: Option<Expr>,
    /// The time limit of one attempt of a step.
    pub(crate) timeout: Option<Expr>,
    /// A cancel does not wait for an attempt of a step that is under way.
    pub(crate) cancel_at_once: bool,
    /// The function that says whether to try a workflow again is no use.
    pub(crate) permanent: Option<Expr>,
}

impl Options {
    /// Reads them; `known` are those that this macro has.
    pub(crate) fn parse(tokens: TokenStream, known: &[&str]) -> Result<Self> {
        let mut options = Options {
            ambo: None,
            name: None,
            retry: None,
            timeout: None,
            cancel_at_once: false,
            permanent: None,
        };
        let parser = syn::meta::parser(|meta| {
            let key = meta.path.get_ident().map(Ident::to_string).unwrap_or_default();
            match key.as_str() {
                key if !known.contains(&key) => {
                    return Err(meta.error(format!("there is no such option; there are {}", list(known))));
                }
                "crate" => options.ambo = Some(meta.value()?.call(Path::parse_mod_style)?),
                "name" => options.name = Some(name(meta.value()?.parse()?)?),
                "retry" => options.retry = Some(meta.value()?.parse()?),
                "cancel_at_once" if meta.input.peek(syn::Token![=]) => {
                    return Err(meta.error("`cancel_at_once` is there or not, and takes no value"));
                }
                "cancel_at_once" => options.cancel_at_once = true,
                "permanent" => options.permanent = Some(meta.value()?.parse()?),
                _ => options.timeout = Some(meta.value()?.parse()?),
            }
            Ok(())
        });
        parser.parse2(tokens)?;
        Ok(options)
    }

    /// The path of the crate `ambo`. An error about what it names shows `place`.
    pub(crate) fn ambo(&self, place: Span) -> TokenStream {
        self.ambo.as_ref().map_or_else(|| quote_spanned!(place=> ::ambo), ToTokens::to_token_stream)
    }

    /// The recorded name of `function`.
    pub(crate) fn name_of(&self, function: &Ident) -> LitStr {
        self.name
            .clone()
            .unwrap_or_else(|| LitStr::new(function.to_string().trim_start_matches("r#"), function.span()))
    }
}

fn list(options: &[&str]) -> String {
    let shown = options.iter().map(|option| match *option {
        "cancel_at_once" => format!("`{option}`"),
        _ => format!("`{option} = ...`"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn name(literal: LitStr) -> Result<LitStr> {
    let name = literal.value();
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        let text = format!(
            "a recorded name has 1 to {NAME_BYTES_MAX} bytes and no NUL; this one has {}",
            name.len()
        );
        return Err(Error::new(literal.span(), text));
    }
    Ok(literal)
}

/// An async function that can be recorded.
pub(crate) struct Function {
    pub(crate) item: ItemFn,
    /// The parameters: there is no `self`.
    pub(crate) parameters: Vec<PatType>,
    /// The type that the function returns: some `Result`, by whatever name.
    pub(crate) returned: Type,
}

impl Function {
    /// Checks what holds for a workflow and a step alike. `what` is the word for it, with its article.
    pub(crate) fn check(item: &ItemFn, what: &str) -> Result<Self> {
        let signature = &item.sig;
        let refuse = |tokens: &dyn ToTokens, text: &str| Err(Error::new_spanned(Verbatim(tokens), text));
        if signature.asyncness.is_none() {
            return refuse(&signature.fn_token, &format!("{what} is an async function: write `async fn`"));
        }
        if let Some(constness) = &signature.constness {
            return refuse(constness, &format!("{what} is a plain async function, not `const`"));
        }
        if let Some(abi) = &signature.abi {
            return refuse(abi, &format!("{what} is a plain async function, not `extern`"));
        }
        if !matches!(signature.safety, syn::Safety::Default) {
            return refuse(&signature.safety, &format!("{what} is a plain async function; drop this"));
        }
        if let Some(parameter) = signature.generics.params.first() {
            let text = format!(
                "{what} has one recorded form and so no generic parameters: name the types, and leave lifetimes out"
            );
            return refuse(parameter, &text);
        }
        let ReturnType::Type(_, returned) = &signature.output else {
            let text = format!("{what} returns a `Result`, as `ambo::Result<()>`: how it ended is recorded");
            return Err(Error::new(signature.paren_token.span.close(), text));
        };
        let returned = (**returned).clone();
        let mut parameters = Vec::new();
        for input in &signature.inputs {
            let parameter = match input {
                FnArg::Typed(parameter) => parameter.clone(),
                FnArg::Receiver(receiver) => {
                    let text = format!(
                        "{what} is a free function without `self`; a worker's values come from `cx.state::<T>()?`"
                    );
                    return refuse(receiver, &text);
                }
            };
            if let Type::ImplTrait(generic) = &*parameter.ty {
                let text = format!("{what} has one recorded form: name the type instead of `impl Trait`");
                return refuse(generic, &text);
            }
            parameters.push(parameter);
        }
        Ok(Function { item: item.clone(), parameters, returned })
    }

    /// The attributes that decide whether the function is there at all: what is generated obeys them too.
    pub(crate) fn conditions(&self) -> Vec<&Attribute> {
        self.item.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect()
    }
}

/// Lets an error take its span from anything that has tokens.
struct Verbatim<'a>(&'a dyn ToTokens);

impl ToTokens for Verbatim<'_> {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        self.0.to_tokens(tokens);
    }
}

/// Whether the type is a path that ends in `name`.
pub(crate) fn is_named(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}

/// A name for the generated code alone: it hides nothing of the user's.
pub(crate) fn hidden(name: &str, place: &impl ToTokens) -> Ident {
    Ident::new(name, Span::mixed_site().located_at(place.span()))
}
