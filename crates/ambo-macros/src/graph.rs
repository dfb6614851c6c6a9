//! `#[ambo::graph]`: the function that declares a graph, and a type of its name that implements `ambo::Workflow`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ItemFn, Result, ReturnType, Type};

use crate::parse::Options;

/// A graph as it was read.
struct Graph<'a> {
    options: Options,
    item: &'a ItemFn,
    /// The type behind the reference that is the first parameter.
    graph: &'a Type,
    /// The type of the node of the input; none for a graph without.
    input: Option<&'a Type>,
    /// The type of the node that it answers.
    output: &'a Type,
}

pub(crate) fn expand(options: TokenStream, item: &mut ItemFn) -> Result<TokenStream> {
    Ok(parse(options, item)?.generate())
}

fn parse(options: TokenStream, item: &ItemFn) -> Result<Graph<'_>> {
    let options = Options::parse(options, &["name", "retry", "permanent", "crate"])?;
    let signature = &item.sig;
    if let Some(asyncness) = &signature.asyncness {
        let text = "a graph is declared before it runs: write `fn`; what its nodes do is async";
        return Err(Error::new_spanned(asyncness, text));
    }
    if let Some(parameter) = signature.generics.params.first() {
        return Err(Error::new_spanned(
            parameter,
            "a graph has one recorded form and so no generic parameters",
        ));
    }
    let form = "a graph is declared as `fn name(graph: &mut Graph, input: Node<Input>) -> Node<Output>`";
    let mut types = Vec::new();
    for parameter in &signature.inputs {
        match parameter {
            FnArg::Typed(parameter) => types.push(&*parameter.ty),
            FnArg::Receiver(receiver) => return Err(Error::new_spanned(receiver, form)),
        }
    }
    let (graph, input) = match *types {
        [Type::Reference(graph)] => (&*graph.elem, None),
        [Type::Reference(graph), input] => (&*graph.elem, Some(input)),
        _ => return Err(Error::new(signature.paren_token.span.join(), form)),
    };
    let ReturnType::Type(_, output) = &signature.output else {
        return Err(Error::new(signature.paren_token.span.close(), form));
    };
    Ok(Graph { options, item, graph, input, output })
}

impl Graph<'_> {
    fn generate(&self) -> TokenStream {
        let ambo = self.options.ambo(Span::call_site());
        let Graph { item, .. } = self;
        let (visibility, workflow) = (&item.vis, &item.sig.ident);
        let conditions: Vec<_> =
            item.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect();
        let name = self.options.name_of(workflow);
        let about =
            format!("The graph [`{workflow}`](fn@{workflow}) as a workflow, to be enqueued and registered.");
        let part = |ty: &Type| quote_spanned!(ty.span()=> <#ty as #ambo::__private::Part>::Is);
        let (error, output) = (part(self.graph), part(self.output));
        let (input, declared, given, call) = match self.input {
            Some(ty) => {
                let input = part(ty);
                (input.clone(), quote!(input: #input), quote!(input), quote!(#workflow))
            }
            None => (quote!(()), quote!(), quote!(()), quote!(|graph, _| #workflow(graph))),
        };
        let plan = quote!(#ambo::Plan<#input, #output, #error>);
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

                    /// The graph, built and checked once.
                    ///
                    /// # Errors
                    /// `AMBO037` and `AMBO001`, as `Graph::build`.
                    #visibility fn plan() -> #ambo::Result<&'static #plan> {
                        static PLAN: ::std::sync::LazyLock<#ambo::Result<#plan>> =
                            ::std::sync::LazyLock::new(|| #ambo::Graph::build(#call));
                        #ambo::__private::planned(&PLAN)
                    }
                }

                impl #ambo::Workflow for #workflow {
                    type Input = #input;
                    type Output = #output;
                    type Error = #error;
                    const NAME: &'static str = #name;

                    #retry

                    #permanent

                    fn shape() -> #ambo::Result<::core::option::Option<#ambo::Shape>> {
                        ::core::result::Result::Ok(::core::option::Option::Some(#workflow::plan()?.shape()))
                    }

                    fn run<'run>(
                        cx: #ambo::Ctx<'run>,
                        input: Self::Input,
                    ) -> #ambo::__private::BoxFuture<'run, ::core::result::Result<Self::Output, Self::Error>> {
                        match #workflow::plan() {
                            ::core::result::Result::Ok(plan) => plan.run(cx, input),
                            ::core::result::Result::Err(error) => {
                                ::std::boxed::Box::pin(async move { ::core::result::Result::Err(error.into()) })
                            }
                        }
                    }
                }

                #ambo::__private::inventory::submit! {
                    #ambo::__private::Registered(|worker| worker.workflow::<#workflow>())
                }
            };
        }
    }
}
