//! `#[ambo::workflow]`: the function, and a type of its name that implements `ambo::Workflow`.

use proc_macro2::TokenStream;
use quote::{ToTokens as _, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ItemFn, Pat, PatType, PathArguments, Result, Type};

use crate::parse::{Function, Options, hidden, is_named};

/// A workflow as it was read.
struct Workflow {
    options: Options,
    function: Function,
    /// The type of the input; none for a workflow without.
    input: Option<Type>,
}

pub(crate) fn expand(options: TokenStream, item: ItemFn) -> Result<TokenStream> {
    Ok(parse(options, item)?.generate())
}

fn parse(options: TokenStream, item: ItemFn) -> Result<Workflow> {
    let options = Options::parse(options, &["name", "crate"])?;
    let mut function = Function::check(item, "a workflow")?;
    let context = match function.parameters.first() {
        Some(first) if is_named(&first.ty, "Ctx") => context(first.clone()),
        Some(first) => {
            return Err(Error::new_spanned(
                &first.ty,
                "the first parameter of a workflow is its context, by value: `cx: Ctx`",
            ));
        }
        None => {
            return Err(Error::new(
                function.item.sig.paren_token.span.join(),
                "a workflow takes its context as the first parameter: `cx: Ctx`",
            ));
        }
    };
    if let Some(third) = function.parameters.get(2) {
        return Err(Error::new_spanned(
            third,
            "a workflow takes its context and one input; put several values into a struct or a tuple",
        ));
    }
    let input = function.parameters.get(1).map(|parameter| (*parameter.ty).clone());
    if let Some(Type::Reference(reference)) = &input {
        return Err(Error::new_spanned(
            reference,
            "the input of a workflow is read from the database: take it by value",
        ));
    }
    if let Some(first) = function.item.sig.inputs.first_mut() {
        *first = FnArg::Typed(context);
    }
    Ok(Workflow { options, function, input })
}

/// `cx: Ctx` as the compiler wants it: a mutable binding, and the lifetime that an async function must not leave out.
fn context(mut parameter: PatType) -> PatType {
    if let Pat::Ident(binding) = &mut *parameter.pat
        && binding.mutability.is_none()
    {
        binding.mutability = Some(syn::token::Mut(binding.ident.span()));
        parameter.attrs.push(syn::parse_quote!(#[allow(unused_mut)]));
    }
    if let Type::Path(path) = &mut *parameter.ty
        && let Some(last) = path.path.segments.last_mut()
        && last.arguments.is_none()
    {
        last.arguments = PathArguments::AngleBracketed(syn::parse_quote!(<'_>));
    }
    parameter
}

impl Workflow {
    fn generate(&self) -> TokenStream {
        let Options { ambo, .. } = &self.options;
        let Function { item, returned, .. } = &self.function;
        let conditions = self.function.conditions();
        let (visibility, workflow) = (&item.vis, &item.sig.ident);
        let name = self.options.name_of(workflow);
        let about = format!("The workflow [`{workflow}`](fn@{workflow}), to be enqueued and registered.");
        let (cx, input) = (hidden("cx", workflow), hidden("input", workflow));
        let (taken, declared, given, passed) = match &self.input {
            Some(ty) => (ty.to_token_stream(), quote!(#input: #ty), quote!(#input), quote!(#cx, #input)),
            None => (quote!(()), quote!(), quote!(()), quote!(#cx)),
        };
        let taken = quote_spanned!(taken.span()=> type Input = #taken;);
        let results = quote_spanned! {returned.span()=>
            type Output = <#returned as #ambo::__private::Returns>::Output;
            type Error = <#returned as #ambo::__private::Returns>::Error;
        };
        let call = quote_spanned!(workflow.span()=> ::std::boxed::Box::pin(#workflow(#passed)));
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

                impl #ambo::Workflow for #workflow {
                    #taken
                    #results
                    const NAME: &'static str = #name;

                    #[allow(unused_variables)]
                    fn run<'run>(
                        #cx: #ambo::Ctx<'run>,
                        #input: Self::Input,
                    ) -> #ambo::__private::BoxFuture<'run, ::core::result::Result<Self::Output, Self::Error>> {
                        #call
                    }
                }

                #ambo::__private::inventory::submit! {
                    #ambo::__private::Registered(|worker| worker.workflow::<#workflow>())
                }
            };
        }
    }
}
