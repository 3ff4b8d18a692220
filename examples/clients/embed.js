// Texts to vectors from Node.    node embed.js TARGET MODEL TEXT...
//
// TARGET is host:port, dns:///name:port for a name with several addresses, or ipv4:10.0.0.1:8001,10.0.0.2:8001.
// CA=ca.pem: TLS, with certificates signed by this one. TOKEN=...: sent with every call.

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const PROTO = process.env.PROTO ?? path.join(__dirname, "../../protos/open_inference.proto");
const { inference } = grpc.loadPackageDefinition(protoLoader.loadSync(PROTO, { keepCase: true, longs: Number }));

// Servers in turn; what a server that starts, stops or is too busy has not computed is sent again. A busy one says when
// (grpc-retry-pushback-ms), and gRPC waits that long.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "inference.GRPCInferenceService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
};
const OPTIONS = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  "grpc.max_receive_message_length": -1, // the server has the limit
};

function credentials() {
  if (!process.env.CA) {
    if (process.env.TOKEN) throw new Error("TOKEN would travel in plain text: set CA");
    return grpc.credentials.createInsecure();
  }
  const tls = grpc.credentials.createSsl(fs.readFileSync(process.env.CA));
  if (!process.env.TOKEN) return tls;
  const token = grpc.credentials.createFromMetadataGenerator((_, done) => {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${process.env.TOKEN}`);
    done(null, metadata);
  });
  return grpc.credentials.combineChannelCredentials(tls, token);
}

// Each text is a 4-byte little-endian length and then its UTF-8.
function encode(texts) {
  return Buffer.concat(
    texts.flatMap((text) => {
      const raw = Buffer.from(text, "utf8");
      const length = Buffer.alloc(4);
      length.writeUInt32LE(raw.length);
      return [length, raw];
    }),
  );
}

function embed(client, model, texts, seconds = 30) {
  const request = {
    model_name: model,
    inputs: [{ name: "text", datatype: "BYTES", shape: [texts.length] }],
    outputs: [{ name: "sentence_embedding" }],
    raw_input_contents: [encode(texts)],
  };
  return new Promise((resolve, reject) => {
    client.ModelInfer(request, { deadline: Date.now() + seconds * 1000 }, (error, response) => {
      if (error) return reject(error);
      const raw = response.raw_output_contents[0];
      const width = response.outputs[0].shape[1];
      const vectors = texts.map((_, row) =>
        Float32Array.from({ length: width }, (_, column) => raw.readFloatLE(4 * (row * width + column))),
      );
      resolve(vectors);
    });
  });
}

async function main([target, model, ...texts]) {
  if (!texts.length) throw new Error("usage: node embed.js TARGET MODEL TEXT...");
  const client = new inference.GRPCInferenceService(target, credentials(), OPTIONS);
  try {
    for (const vector of await embed(client, model, texts)) console.log(JSON.stringify([...vector]));
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
