// Command traefik is the part of Traefik that reads Ingresses and writes their status: its
// provider for Ingresses, without the proxy that would use the routes. The whole of Traefik
// takes 2,500 packages; this takes 940, most of which Kubernetes' own programs have too.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"syscall"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/provider/kubernetes/ingress"
	"github.com/traefik/traefik/v3/pkg/safe"
)

func main() {
	// Traefik's own name of it.
	published := flag.String("providers.kubernetesingress.ingressendpoint.publishedservice", "",
		"NAMESPACE/NAME of the Service whose addresses Ingresses get")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	provider := ingress.Provider{
		IngressEndpoint: &ingress.EndpointIngress{PublishedService: *published},
	}
	routes := make(chan dynamic.Message)
	if err := provider.Provide(routes, safe.NewPool(ctx)); err != nil {
		log.Fatal(err)
	}
	for {
		select {
		case <-routes:
		case <-ctx.Done():
			return
		}
	}
}
