// Texts to vectors from Java.    java Embed TARGET MODEL TEXT...
//
// TARGET is host:port, or dns:///name:port for a name with several addresses.
// CA=ca.pem: TLS, with certificates signed by this one. TOKEN=...: sent with every call.

import com.google.protobuf.ByteString;
import inference.GRPCInferenceServiceGrpc;
import inference.GRPCInferenceServiceGrpc.GRPCInferenceServiceBlockingStub;
import inference.OpenInference.ModelInferRequest;
import inference.OpenInference.ModelInferResponse;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

public final class Embed {
  // Servers in turn; what a server that starts, stops or is too busy has not computed is sent again. A busy one says
  // when (grpc-retry-pushback-ms), and gRPC waits that long. Numbers must be doubles here.
  private static final Map<String, Object> SERVICE_CONFIG =
      Map.of(
          "loadBalancingConfig", List.of(Map.of("round_robin", Map.of())),
          "methodConfig",
              List.of(
                  Map.of(
                      "name", List.of(Map.of("service", "inference.GRPCInferenceService")),
                      "retryPolicy",
                          Map.of(
                              "maxAttempts", 5.0,
                              "initialBackoff", "0.1s",
                              "maxBackoff", "2s",
                              "backoffMultiplier", 2.0,
                              "retryableStatusCodes", List.of("UNAVAILABLE", "RESOURCE_EXHAUSTED")))));

  // Goes with every call.
  private static ClientInterceptor token(String secret) {
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + secret);
    return MetadataUtils.newAttachHeadersInterceptor(headers);
  }

  private static ManagedChannel connect(String target, String ca) throws IOException {
    ChannelCredentials credentials =
        ca == null
            ? InsecureChannelCredentials.create()
            : TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
    return Grpc.newChannelBuilder(target, credentials)
        .defaultServiceConfig(SERVICE_CONFIG)
        .enableRetry()
        .maxInboundMessageSize(Integer.MAX_VALUE) // the server has the limit
        .build();
  }

  // Each text is a 4-byte little-endian length and then its UTF-8.
  private static ByteString encode(List<String> texts) {
    ByteArrayOutputStream all = new ByteArrayOutputStream();
    for (String text : texts) {
      byte[] raw = text.getBytes(StandardCharsets.UTF_8);
      all.writeBytes(ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(raw.length).array());
      all.writeBytes(raw);
    }
    return ByteString.copyFrom(all.toByteArray());
  }

  private static float[][] embed(GRPCInferenceServiceBlockingStub stub, String model, List<String> texts) {
    ModelInferRequest request =
        ModelInferRequest.newBuilder()
            .setModelName(model)
            .addInputs(
                ModelInferRequest.InferInputTensor.newBuilder()
                    .setName("text")
                    .setDatatype("BYTES")
                    .addShape(texts.size()))
            .addOutputs(ModelInferRequest.InferRequestedOutputTensor.newBuilder().setName("sentence_embedding"))
            .addRawInputContents(encode(texts))
            .build();
    ModelInferResponse answer = stub.withDeadlineAfter(30, TimeUnit.SECONDS).modelInfer(request); // retries included
    int width = (int) answer.getOutputs(0).getShape(1);
    ByteBuffer raw = answer.getRawOutputContents(0).asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
    float[][] vectors = new float[texts.size()][width];
    for (float[] vector : vectors) {
      for (int column = 0; column < width; column++) {
        vector[column] = raw.getFloat();
      }
    }
    return vectors;
  }

  public static void main(String[] arguments) throws Exception {
    String ca = System.getenv("CA");
    String token = System.getenv("TOKEN");
    if (token != null && ca == null) {
      throw new IllegalArgumentException("TOKEN would travel in plain text: set CA");
    }
    ManagedChannel channel = connect(arguments[0], ca);
    try {
      GRPCInferenceServiceBlockingStub stub = GRPCInferenceServiceGrpc.newBlockingStub(channel);
      if (token != null) {
        stub = stub.withInterceptors(token(token));
      }
      List<String> texts = Arrays.asList(arguments).subList(2, arguments.length);
      for (float[] vector : embed(stub, arguments[1], texts)) {
        System.out.println(Arrays.toString(vector));
      }
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}
