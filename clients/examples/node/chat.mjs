// Chats and votes with no protos and no generated code: the server tells what it offers (reflection).
//
//     npm ci && node chat.mjs "Name three birds." 127.0.0.1:50051
//
// With TLS: grpc.credentials.createSsl(). PLAUDIT_API_KEY is sent, if it is set.
import * as grpc from "@grpc/grpc-js";
import { randomUUID } from "node:crypto";
import { promisify } from "node:util";
import { GrpcReflection } from "grpc-js-reflection-client";

const [prompt = "Name three birds.", address = "127.0.0.1:50051"] = process.argv.slice(2);
const credentials = grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
if (process.env.PLAUDIT_API_KEY) metadata.set("authorization", `Bearer ${process.env.PLAUDIT_API_KEY}`);

const reflection = new GrpcReflection(address, credentials);
async function client(service) {
  const descriptor = await reflection.getDescriptorBySymbol(`plaudit.v1.${service}`);
  const { v1 } = descriptor.getPackageObject({ enums: String, oneofs: true }).plaudit;
  return new v1[service](address, credentials);
}

const chat = await client("ChatService");
let receipt;
const messages = [{ role: "ROLE_USER", content: prompt }];
for await (const event of chat.StreamChat({ messages, sampling: { max_tokens: 64 } }, metadata)) {
  if (event.event === "started") receipt = event.started.receipt;
  if (event.event === "delta") process.stdout.write(event.delta.text ?? ""); // empty when a character is not whole yet
}

const feedback = await client("FeedbackService");
const submit = promisify(feedback.SubmitFeedback.bind(feedback));
const { durability } = await submit({ receipt, thumb: "THUMB_UP", idempotency_key: randomUUID() }, metadata);
console.log(`\n${durability}`);
chat.close();
feedback.close();
process.exit(0); // the reflection client has no close
