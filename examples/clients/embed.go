// Texts to vectors from Go.    go run . TARGET MODEL TEXT...
//
// TARGET is host:port, or dns:///name:port for a name with several addresses.
// CA=ca.pem: TLS, with certificates signed by this one. TOKEN=...: sent with every call.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	pb "example/inference"
)

// Servers in turn; what a server that starts, stops or is too busy has not computed is sent again. A busy one says when
// (grpc-retry-pushback-ms), and gRPC waits that long.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "inference.GRPCInferenceService"}],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.1s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    }
  }]
}`

// token goes with every call. gRPC refuses it on a connection without TLS.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

func (token) RequireTransportSecurity() bool { return true }

func connect(target string) (*grpc.ClientConn, error) {
	channel := insecure.NewCredentials()
	if ca := os.Getenv("CA"); ca != "" {
		var err error
		if channel, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return nil, err
		}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(channel),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)), // the server has the limit
	}
	if secret := os.Getenv("TOKEN"); secret != "" {
		options = append(options, grpc.WithPerRPCCredentials(token(secret)))
	}
	return grpc.NewClient(target, options...)
}

// encode writes each text as a 4-byte little-endian length and then its UTF-8.
func encode(texts []string) []byte {
	var raw []byte
	for _, text := range texts {
		raw = append(binary.LittleEndian.AppendUint32(raw, uint32(len(text))), text...)
	}
	return raw
}

func embed(ctx context.Context, client pb.GRPCInferenceServiceClient, model string, texts []string) ([][]float32, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // retries included
	defer cancel()
	answer, err := client.ModelInfer(ctx, &pb.ModelInferRequest{
		ModelName: model,
		Inputs: []*pb.ModelInferRequest_InferInputTensor{
			{Name: "text", Datatype: "BYTES", Shape: []int64{int64(len(texts))}},
		},
		Outputs:          []*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "sentence_embedding"}},
		RawInputContents: [][]byte{encode(texts)},
	})
	if err != nil {
		return nil, err
	}
	raw, width := answer.RawOutputContents[0], int(answer.Outputs[0].Shape[1])
	vectors := make([][]float32, len(texts))
	for row := range vectors {
		vectors[row] = make([]float32, width)
		for column := range vectors[row] {
			bits := binary.LittleEndian.Uint32(raw[4*(row*width+column):])
			vectors[row][column] = math.Float32frombits(bits)
		}
	}
	return vectors, nil
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("usage: embed TARGET MODEL TEXT...")
	}
	connection, err := connect(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	vectors, err := embed(context.Background(), pb.NewGRPCInferenceServiceClient(connection), os.Args[2], os.Args[3:])
	if err != nil {
		log.Fatal(err)
	}
	for _, vector := range vectors {
		fmt.Println(vector)
	}
}
