"""Execution of GraphQL documents against the schema file and the resolver functions."""

import json
import re
import traceback
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from graphql import (
    DocumentNode,
    FieldsOnCorrectTypeRule,
    GraphQLError,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLScalarType,
    GraphQLSchema,
    KnownArgumentNamesRule,
    KnownTypeNamesRule,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

Resolver = Callable[..., Any]
_RESOLVERS: dict[str, Resolver] = {}


def resolves(*fields: str) -> Callable[[Resolver], Resolver]:
    """Register a function as the resolver of `"Type.field"`; its arguments are in snake case."""

    def register(function: Resolver) -> Resolver:
        for field in fields:
            _RESOLVERS[field] = function
        return function

    return register


@cache
def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def operation_name(query: str) -> str | None:
    """The operation's name, read from the text because Python clients leave `operationName` empty."""
    try:
        document, _ = _read(query)
    except GraphQLError:
        return None
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode) and definition.name:
            return definition.name.value
    return None


def gaps(query: str) -> list[str]:
    """The names of fields and types in the document that this server does not have."""
    return [error.message for error in _read(query)[1]]


def execute(query: str, variables: dict[str, Any] | None, context: Any) -> dict[str, Any]:
    try:
        document, errors = _read(query)
    except GraphQLError as error:
        return {"data": None, "errors": [error.formatted]}
    if errors:
        return {"data": None, "errors": [error.formatted for error in errors]}
    result = execute_sync(
        _schema(),
        document,
        context_value=context,
        variable_values=variables or {},
        field_resolver=_attribute,
        type_resolver=lambda value, _info, _type: value.graphql_type,
    )
    # The client takes an answer with both for a success, so an error leaves no data.
    if result.errors:
        for failure in result.errors:
            _show_bug(failure)
        return {"data": None, "errors": [error.formatted for error in result.errors]}
    return {"data": result.data}


def _show_bug(error: GraphQLError) -> None:
    """Print the traceback of a bug in a resolver, because the client would show one line of it."""
    cause = error.original_error
    if cause is not None and type(cause) not in (LookupError, ValueError):
        traceback.print_exception(cause)


@lru_cache(maxsize=256)
def _read(query: str) -> tuple[DocumentNode, list[GraphQLError]]:
    """The parsed document and what this server lacks for it. Only the rules that name a gap: the client's documents
    break others (a string for a list of JSON) and real servers let them.
    """
    document = parse(query)
    rules = [FieldsOnCorrectTypeRule, KnownArgumentNamesRule, KnownTypeNamesRule]
    return document, validate(_schema(), document, rules)


def _attribute(source: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
    if isinstance(source, dict):
        value = source.get(info.field_name)
    else:
        value = getattr(source, snake_case(info.field_name), None)
    return value(info, **arguments) if callable(value) else value


@cache
def _schema() -> GraphQLSchema:
    from tests.wandb_server import resolvers

    schema = build_schema(Path(__file__).with_name("schema.graphql").read_text())
    for module in resolvers.MODULES:
        import_module(module)
    for path, resolver in _RESOLVERS.items():
        _field(schema, path).resolve = resolver
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            for name, field in kind.fields.items():
                field.out_name = snake_case(name)
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for field in kind.fields.values():
                for name, argument in field.args.items():
                    argument.out_name = snake_case(name)
        elif isinstance(kind, GraphQLScalarType) and kind.name == "JSONString":
            kind.coerce_output_value = _to_json_text
            kind.coerce_input_value = _from_json_text
    return schema


def _field(schema: GraphQLSchema, path: str) -> GraphQLField:
    kind_name, _, field_name = path.partition(".")
    kind = schema.type_map[kind_name]
    if not isinstance(kind, GraphQLObjectType):
        raise TypeError(f"{path}: {kind_name} is not an object type")
    field: GraphQLField = kind.fields[field_name]
    return field


def _to_json_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _from_json_text(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value else value
