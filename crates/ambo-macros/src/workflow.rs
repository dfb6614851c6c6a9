//! `#[ambo::workflow]`: the function, and a type of its name that implements `ambo::Workflow`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ItemFn, LitStr, Pat, PathArguments, Result, Type};

use crate::parse::{Function, Options, hidden, is_named};

/// A workflow as it was read.
struct Workflow {
    options: Options,
    function: Function,
    /// The type of the input; none for a workflow without.
    input: Option<Type>,
}

pub(crate) fn expand(options: TokenStream, item: &mut ItemFn) -> Result<TokenStream> {
    item.sig.inputs.iter_mut().for_each(complete);
    Ok(parse(options, item)?.generate())
}

/// Makes of `cx: Ctx` what the compiler wants: a mutable binding, and the lifetime that an async function must name.
fn complete(parameter: &mut FnArg) {
    let FnArg::Typed(parameter) = parameter else { return };
    let Type::Path(path) = &mut *parameter.ty else { return };
    let Some(last) = path.path.segments.last_mut().filter(|last| last.ident == "Ctx") else { return };
    if last.arguments.is_none() {
        last.arguments = PathArguments::AngleBracketed(syn::parse_quote!(<'_>));
    }
    if let Pat::Ident(binding) = &mut *parameter.pat
        && binding.mutability.is_none()
    {
        binding.mutability = Some(syn::token::Mut(binding.ident.span()));
        parameter.attrs.push(syn::parse_quote!(#[allow(unused_mut)]));
    }
}

fn parse(options: TokenStream, item: &ItemFn) -> Result<Workflow> {
    let options = Options::parse(options, &["name", "retry", "permanent", "crate"])?;
    let function = Function::check(item, "a workflow")?;
    let input = match &*function.parameters {
        [context] if is_named(&context.ty, "Ctx") => None,
        [context, input] if is_named(&context.ty, "Ctx") => Some((*input.ty).clone()),
        [context, _, third, ..] if is_named(&context.ty, "Ctx") => {
            return Err(Error::new_spanned(
                third,
                "a workflow takes its context and one input; put several values into a struct or a tuple",
            ));
        }
        [first, ..] => {
            return Err(Error::new_spanned(
                &first.ty,
                "the first parameter of a workflow is its context, by value: `cx: Ctx`",
            ));
        }
        [] => {
            return Err(Error::new(
                item.sig.paren_token.span.join(),
                "a workflow takes its context as the first parameter: `cx: Ctx`",
            ));
        }
    };
    if let Some(Type::Reference(reference)) = &input {
        return Err(Error::new_spanned(
            reference,
            "the input of a workflow is read from the database: take it by value",
        ));
    }
    Ok(Workflow { options, function, input })
}

impl Workflow {
    fn generate(&self) -> TokenStream {
        let ambo = self.options.ambo(Span::call_site());
        let item = &self.function.item;
        let conditions = self.function.conditions();
        let (visibility, workflow) = (&item.vis, &item.sig.ident);
        let name = self.options.name_of(workflow);
        let about = format!("The workflow [`{workflow}`](fn@{workflow}), to be enqueued and registered.");
        let input = hidden("input", workflow);
        let (declared, given) = match &self.input {
            Some(ty) => (quote!(#input: #ty), quote!(#input)),
            None => (quote!(), quote!(())),
        };
        let implementation = self.implementation(&name);
        quote! {
            #item

            #(#conditions)*
            #[doc = #about]
            #[allow(non_camel_case_types)]
            #[derive(Debug)]
            #visibility struct #workflow {}

            #(#conditions)*
            const _: () = {
                #[allow(dead_code)]
                impl #workflow {
                    /// The name under which runs are recorded.
                    #visibility const NAME: &'static str = #name;

                    /// A run to be: set its options, then put it on a transaction, or start it.
                    #visibility fn enqueue(#declared) -> #ambo::Enqueue<#workflow> {
                        #ambo::Enqueue::new(#given)
                    }
                }

                #implementation

                #ambo::__private::inventory::submit! {
                    #ambo::__private::Registered(|worker| worker.workflow::<#workflow>())
                }
            };
        }
    }

    /// The trait. Its tokens lie where the type lies that an error would be about.
    fn implementation(&self, name: &LitStr) -> TokenStream {
        let Function { item, returned, .. } = &self.function;
        let ambo = self.options.ambo(returned.span());
        let workflow = &item.sig.ident;
        let (cx, input) = (hidden("cx", workflow), hidden("input", workflow));
        let (ty, passed) = match &self.input {
            Some(ty) => (ty.to_token_stream(), quote!(#cx, #input)),
            None => (quote!(()), quote!(#cx)),
        };
        let taken = quote_spanned!(ty.span()=> type Input = #ty;);
        let call = quote_spanned!(workflow.span()=> ::std::boxed::Box::pin(#workflow(#passed)));
        let retry = self
            .options
            .retry
            .as_ref()
            .map(|policy| quote_spanned!(policy.span()=> fn retry() -> #ambo::Retry { #policy }));
        let permanent = self.options.permanent.as_ref().map(|judge| {
            quote_spanned!(judge.span()=> fn is_permanent(error: &Self::Error) -> bool {
                let judge: fn(&Self::Error) -> bool = #judge;
                judge(error)
            })
        });
        quote_spanned! {returned.span()=>
            impl #ambo::Workflow for #workflow {
                #taken
                type Output = <#returned as #ambo::__private::Returns>::Output;
                type Error = <#returned as #ambo::__private::Returns>::Error;
                const NAME: &'static str = #name;

                #retry

                #permanent

                #[allow(unused_variables)]
                fn run<'run>(
                    #cx: #ambo::Ctx<'run>,
                    #input: Self::Input,
                ) -> #ambo::__private::BoxFuture<'run, ::core::result::Result<Self::Output, Self::Error>> {
                    #call
                }
            }
        }
    }
}
