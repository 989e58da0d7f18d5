/**
 * Calls of a service that is generated from its proto, as grpc-js takes them, and the service's description for server
 * reflection.
 */
import {
  create,
  type DescFile,
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type Message,
  type MessageInitShape,
  type MessageShape,
  toBinary
} from '@bufbuild/protobuf'
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt'
import type { MethodDefinition } from '@grpc/grpc-js'
import type { AnyDefinition, PackageDefinition } from '@grpc/proto-loader'

/** The methods of a service, as the generated descriptor types them. */
export function methodsOf<Service extends DescService>(service: Service): [keyof Service['method'], DescMethodUnary][] {
  return Object.entries(service.method) as [keyof Service['method'], DescMethodUnary][]
}

/** A call with one answer. The messages are protobuf's: what is made of one may be an error with words. */
export function unaryMethod({ parent, name, input, output }: DescMethodUnary): MethodDefinition<Message, Message> {
  return {
    path: `/${parent.typeName}/${name}`,
    requestStream: false,
    responseStream: false,
    requestSerialize: (request) => encoded(input, request),
    requestDeserialize: (bytes) => fromBinary(input, bytes),
    responseSerialize: (response) => encoded(output, response),
    responseDeserialize: (bytes) => fromBinary(output, bytes)
  }
}

/**
 * A call that is answered by a stream of messages, which pass through encoded: a walk has made them, and who reads them
 * decodes them by itself (block-metadata.ts).
 *
 * @param taken what is made of a request that came in
 */
export function streamedMethod<Input extends DescMessage, Request extends MessageInitShape<Input>>(
  { parent, name, input }: DescMethodServerStreaming<Input>,
  taken: (request: MessageShape<Input>) => Request
): MethodDefinition<Request, Uint8Array> {
  return {
    path: `/${parent.typeName}/${name}`,
    requestStream: false,
    responseStream: true,
    requestSerialize: (request) => encoded(input, create(input, request)),
    requestDeserialize: (bytes) => taken(fromBinary(input, bytes)),
    responseSerialize: shared,
    responseDeserialize: (message) => message
  }
}

/** A file, and the files that it imports, for server reflection, which takes what proto-loader makes. */
export function reflected({ proto, name, dependencies }: DescFile): PackageDefinition {
  const fileDescriptorProtos = [proto, ...dependencies.map((each) => each.proto)].map((each) =>
    encoded(FileDescriptorProtoSchema, each)
  )
  // Of a file it reads nothing but this.
  return { [name]: { fileDescriptorProtos } as unknown as AnyDefinition }
}

function encoded<Desc extends DescMessage>(schema: Desc, message: Message): Buffer {
  return shared(toBinary(schema, message as MessageShape<Desc>))
}

/** grpc-js wants a Buffer; this one shares the message's memory. */
function shared({ buffer, byteOffset, byteLength }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength)
}
